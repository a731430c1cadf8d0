"""Plays the sample pipeline into the service the way a team's own tools would: by `POST /v1/events`."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp

from bot.demo.pipeline import OPENING, SamplePipeline
from bot.errors import MusherError
from crdt import PipelineEvent, RecordedEvent

SHORTEST_PAUSE_S: Final = 4.0
LONGEST_PAUSE_S: Final = 9.0
"""Between two events: slow enough to read them, fast enough that there is news at every question."""
RECENT_EVENTS: Final = 10
EVENTS_AT_RESUMPTION: Final = 4
"""What happens at once on a board that was resumed, so that there is news for the first question."""


class EventsRefused(MusherError):
    """The service did not take events of the sample pipeline."""

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(f"the sample pipeline's events were not taken by {url}: {problem}; musher.log may tell more")


@dataclass(frozen=True, slots=True)
class Feed:
    """Posts what happens on the board to `url`; each event is then handed to `on_event`.

    `recent` holds the newest events, oldest first.
    """

    http: aiohttp.ClientSession
    url: str
    token: str = field(repr=False)
    pipeline: SamplePipeline
    on_event: Callable[[PipelineEvent], None]
    recent: deque[PipelineEvent] = field(default_factory=lambda: deque(maxlen=RECENT_EVENTS))

    def resume(self, recorded: Iterable[RecordedEvent]) -> None:
        """Take over what an earlier start has posted."""
        for event in recorded:
            self.pipeline.resume(event)
            self.recent.append(PipelineEvent(event.story_id, event.from_stage, event.to_stage, event.pipeline_event))

    async def begin(self) -> None:
        """Let the first things happen. Raises `EventsRefused`."""
        await self.play(EVENTS_AT_RESUMPTION if self.pipeline.count else len(OPENING))

    async def play(self, count: int) -> None:
        """Let `count` things happen at once. Raises `EventsRefused`."""
        first = self.pipeline.count + 1
        events = [self.pipeline.advance() for _ in range(count)]
        await self._post(events, first)
        for event in events:
            self.recent.append(event)
            self.on_event(event)

    async def keep_moving(self) -> None:
        """Let something happen every few seconds, until cancelled. Raises `EventsRefused`."""
        while True:
            await asyncio.sleep(random.uniform(SHORTEST_PAUSE_S, LONGEST_PAUSE_S))
            await self.play(1)

    async def _post(self, events: Sequence[PipelineEvent], first: int) -> None:
        body = [
            {
                "id": f"demo-{number}",
                "story_id": event.story_id,
                "from_stage": event.from_stage,
                "to_stage": event.to_stage,
                "pipeline_event": event.pipeline_event,
            }
            for number, event in enumerate(events, first)
        ]
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            async with self.http.post(self.url, json=body, headers=headers) as response:
                answer = await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EventsRefused(self.url, f"no answer ({type(error).__name__})") from error
        if response.status != 202:
            raise EventsRefused(self.url, f"{response.status} {answer}")
