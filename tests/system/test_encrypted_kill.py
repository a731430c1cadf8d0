"""kill -9 at any instant, in encrypted rooms: no message lost, none answered twice, nothing readable.

The judge is outside: what a person's client can decrypt, what the homeserver has, and the requests at the model.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest

from bot.demo.homeserver import Homeserver
from tests.bot.matrix.e2ee.nio_person import NioPerson
from tests.servers.model import ScriptedModel
from tests.system.outside import all_told, replies_in
from tests.system.service import MusherProcess

KILLS: Final = int(os.environ.get("MUSHER_TEST_KILLS", "3"))
"""More of them find more: 30 take a minute."""
SEED: Final = 5
LONG: Final = 60.0


class Talk:
    """One person and their encrypted room."""

    def __init__(self, person: NioPerson, room: str) -> None:
        self.person = person
        self.room = room
        self.said: list[tuple[str, str]] = []

    def answers(self) -> list[str]:
        """The messages that the replies answer, in the order in which they came."""
        answered = [each.source["content"]["m.relates_to"]["m.in_reply_to"]["event_id"] for each in self.person.heard]
        return [str(event_id) for event_id in answered]

    async def say(self) -> str:
        text = f"question {len(self.said)} of {self.person.user_id}"
        event_id = await self.person.say(self.room, text)
        self.said.append((event_id, text))
        return event_id

    async def until_answered(self, event_id: str) -> None:
        await self.person.until(lambda: event_id in self.answers(), LONG)

    async def go_on(self, over: asyncio.Event) -> None:
        """Say something, sometimes two things at once, and wait for the answer, until it is over."""
        while not over.is_set():
            said = [await self.say() for _ in range(1 + len(self.said) % 2)]
            await self.until_answered(said[-1])

    async def judge(self, musher: MusherProcess, model: ScriptedModel) -> None:
        """Hold what was said against what the model was told, and what the homeserver has."""
        last = await self.say()
        await self.until_answered(last)
        lines = [f"<{self.person.user_id}>: {text}" for _, text in self.said]
        final = [each for each in model.requests if lines[-1] in all_told(each.messages)[-1].said][-1].messages
        turns = all_told(final)
        assert [line for turn in turns for line in turn.said] == lines
        assert max(Counter(self.answers()).values()) == 1
        assert len(self.answers()) == len(turns)
        assert [each.body for each in self.person.heard[:-1]] == replies_in(final)
        assert all(each.decrypted for each in self.person.heard)
        assert self.person.unread == []
        kinds = Counter(
            each["type"] for each in await self.person.history(self.room) if each["sender"] == musher.user_id
        )
        assert kinds == {"m.room.member": 1, "m.room.encrypted": len(turns)}


@pytest.fixture
async def talks(
    musher: MusherProcess, synapse: Homeserver, unique: Callable[[str], str], tmp_path: Path
) -> AsyncIterator[list[Talk]]:
    async with AsyncExitStack() as people:
        talks = []
        for name in (unique("alice"), unique("bob")):
            person = await people.enter_async_context(NioPerson.on(synapse, name, tmp_path / name))
            room = await person.create_room(musher.user_id)
            await person.until_member(room, musher.user_id)
            talks.append(Talk(person, room))
        yield talks


async def wait_for_more(musher: MusherProcess, lines: int) -> None:
    """Wait until the service has logged so many more lines."""
    wanted = len(musher.logs) + lines
    await musher.wait_for_logs(lambda: len(musher.logs) >= wanted)


async def test_kills_at_random_in_encrypted_rooms_lose_repeat_and_show_nothing(
    musher: MusherProcess, model: ScriptedModel, talks: list[Talk]
) -> None:
    chance, over = random.Random(SEED), asyncio.Event()
    async with asyncio.TaskGroup() as busy:
        for talk in talks:
            busy.create_task(talk.go_on(over))
        for _ in range(KILLS):
            await wait_for_more(musher, chance.randint(1, 40))
            await musher.kill()
            await musher.start(ready=False)
        over.set()
    for talk in talks:
        await talk.judge(musher, model)


async def test_kills_at_pause_points_in_an_encrypted_room_lose_and_repeat_nothing(
    musher: MusherProcess, model: ScriptedModel, talks: list[Talk]
) -> None:
    await musher.kill()
    await talks[0].say()
    for point in ("admit", "sent"):
        await musher.start(pause_at=point, ready=False)
        await musher.wait_until_paused(point)
        await musher.kill()
        musher.resume(point)
    await musher.start()
    await talks[0].judge(musher, model)
