"""kill -9 at any instant: every message is answered once, and every event told once to each room, in order.

The judge is outside: the homeserver's rooms and the requests at the model's server. Each message's text names its room
and is unlike all others.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import pytest

from tests.servers.model import ScriptedModel
from tests.servers.synapse import Person, RoomEvent
from tests.system.conftest import enter
from tests.system.outside import event, judge, line_of, wait_until_settled
from tests.system.service import MusherProcess

KILLS: Final = int(os.environ.get("MUSHER_TEST_KILLS", "6"))
SEED: Final = 8
LONG: Final = 120.0
"""Seconds for what may have to wait until the kills are over."""


@dataclass(eq=False)
class Scene:
    """Two people who talk in two rooms, and two senders of events, all at once."""

    musher: MusherProcess
    model: ScriptedModel
    people: tuple[Person, Person]
    rooms: tuple[str, str]
    said: list[str] = field(default_factory=list)
    taken: dict[str, list[str]] = field(default_factory=dict)
    """The audit lines of the events that the service has accepted, by sender, in order."""
    _numbers: count[int] = field(default_factory=count)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def say(self, person: Person, room: str) -> str:
        """Say something that nobody else says; the event id."""
        text = f"question {next(self._numbers)} in {room}"
        event_id = await person.say(room, text)
        self.said.append(text)
        return event_id

    async def post(self, sender: str, number: int) -> None:
        """Post an event, again and again until it is accepted."""
        posted = event(f"{sender}-{number}", event_id=f"{sender}/{number}")
        await self.musher.post_events(posted)
        async with self._changed:
            self.taken.setdefault(sender, []).append(line_of(posted))
            self._changed.notify_all()

    def events_taken(self) -> int:
        return sum(len(lines) for lines in self.taken.values())

    async def wait_for_events(self, number: int) -> None:
        """Wait until so many events in all have been accepted."""
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: self.events_taken() >= number)

    @asynccontextmanager
    async def in_full_swing(self) -> AsyncIterator[None]:
        """Let everybody talk and post while the block runs, and wait afterwards until all messages are settled."""
        over = asyncio.Event()
        async with asyncio.TaskGroup() as busy:
            for person in self.people:
                for room in self.rooms:
                    busy.create_task(self._talk(person, room, over))
            for sender in ("ci", "tracker"):
                busy.create_task(self._report(sender, over))
            yield
            over.set()

    async def _talk(self, person: Person, room: str, over: asyncio.Event) -> None:
        while not over.is_set():
            said = await self.say(person, room)
            await wait_until_settled(person, room, said, self.musher.user_id, LONG)

    async def _report(self, sender: str, over: asyncio.Event) -> None:
        for number in count():
            await self.post(sender, number)
            if over.is_set():
                return
            if number % 3 == 2:
                await _either(self.model.wait_for_requests(len(self.model.requests) + 1, LONG), over.wait())

    async def judge(self) -> int:
        """Judge both rooms from outside; returns how many turns there were."""
        verdicts = [await judge(self.people[0], room, self.musher.user_id, self.model) for room in self.rooms]
        lines = verdicts[0].lines
        assert verdicts[1].lines == lines
        assert sorted(lines) == sorted(line for taken in self.taken.values() for line in taken)
        for sender, taken in self.taken.items():
            assert [line for line in lines if f'"{sender}-' in line] == taken
        return sum(verdict.turns for verdict in verdicts)


async def _either(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait until one of them happens."""
    tasks = [asyncio.create_task(each) for each in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.fixture
async def scene(musher: MusherProcess, model: ScriptedModel, alice: Person, bob: Person) -> Scene:
    rooms = [await enter(alice, musher), await enter(alice, musher)]
    for room in rooms:
        await alice.invite(room, bob.user_id)
        await bob.join(room)
    return Scene(musher, model, (alice, bob), (rooms[0], rooms[1]))


@pytest.mark.parametrize("point", ["admit", "begin", "model", "complete", "sent"])
async def test_a_kill_at_a_pause_point_loses_and_repeats_nothing(scene: Scene, point: str) -> None:
    musher, (alice, bob) = scene.musher, scene.people
    for number in range(3):
        await scene.post("ci", number)
    await musher.kill()
    for room in scene.rooms:
        await scene.say(alice, room)
        await scene.say(bob, room)
    await musher.start(pause_at=point, ready=False)
    await musher.wait_until_paused(point)
    await scene.post("ci", 3)
    said = [await scene.say(person, room) for person in scene.people for room in scene.rooms]
    await musher.kill()
    musher.resume(point)
    posting = asyncio.create_task(scene.post("ci", 4))
    await musher.start()
    await posting
    for room, event_id in zip(scene.rooms * 2, said, strict=True):
        await wait_until_settled(alice, room, event_id, musher.user_id)
    await scene.judge()


async def test_kills_at_random_lose_and_repeat_nothing(scene: Scene) -> None:
    chance = random.Random(SEED)
    async with scene.in_full_swing():
        for _ in range(KILLS):
            await _moment(scene, chance)()
            await scene.musher.kill()
            await scene.musher.start(ready=False)
    assert await scene.judge() > KILLS


def _moment(scene: Scene, chance: random.Random) -> Callable[[], Awaitable[object]]:
    """Choose what the next kill waits for."""
    model, musher, alice = scene.model, scene.musher, scene.people[0]
    room = chance.choice(scene.rooms)
    requests, lines, events = len(model.requests), len(musher.logs), scene.events_taken()
    # A start logs about 8 lines, a turn 6.
    more_lines = chance.randint(1, 40)

    def replies(seen: list[RoomEvent]) -> int:
        return sum(each["sender"] == musher.user_id and each["type"] == "m.room.message" for each in seen)

    async def next_reply() -> None:
        there = replies(await alice.messages(room))
        await alice.wait_for(room, lambda seen: replies(seen) > there, 30)

    return chance.choice(
        [
            lambda: model.wait_for_requests(requests + 1 + more_lines % 4, timeout=30),
            lambda: musher.wait_for_logs(lambda: len(musher.logs) >= lines + more_lines),
            lambda: scene.wait_for_events(events + 1 + more_lines % 3),
            next_reply,
        ]
    )
