"""kill -9 at any instant, in encrypted rooms: no message lost, none answered twice, nothing readable.

The judge is outside: what a person's client can decrypt, what the homeserver has, and the requests at the model.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest

from bot.demo.homeserver import Homeserver
from tests.servers.model import ScriptedModel
from tests.soak.encrypted import Talk
from tests.soak.oracle import Findings, judge_room
from tests.system.service import MusherProcess

KILLS: Final = int(os.environ.get("MUSHER_TEST_KILLS", "3"))
"""More of them find more: 30 take a minute."""
SEED: Final = 5


async def judge(talk: Talk, bot: str, model: ScriptedModel) -> None:
    """Ask once more, and hold what was said against what the model was told, and what the homeserver has."""
    await talk.ask()
    findings = Findings()
    timeline = await talk.timeline(bot, findings)
    judge_room(talk.room, timeline, bot, [each.messages for each in model.requests], findings)
    assert not findings, findings


@pytest.fixture
async def talks(
    musher: MusherProcess, synapse: Homeserver, unique: Callable[[str], str], tmp_path: Path
) -> AsyncIterator[list[Talk]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(Talk.begun(synapse, unique(name), tmp_path, musher.user_id))
            for name in ("alice", "bob")
        ]


async def go_on(talk: Talk, over: asyncio.Event) -> None:
    """Ask one thing after the other."""
    while not over.is_set():
        await talk.ask()


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
            busy.create_task(go_on(talk, over))
        for _ in range(KILLS):
            await wait_for_more(musher, chance.randint(1, 40))
            await musher.kill()
            await musher.start(ready=False)
        over.set()
    for talk in talks:
        await judge(talk, musher.user_id, model)


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
    await judge(talks[0], musher.user_id, model)
