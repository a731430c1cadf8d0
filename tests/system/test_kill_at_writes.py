"""A kill at a chosen write or fsync of a turn of the whole service: nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
from typing import Final

import pytest

from tests.crdt.disk import library
from tests.servers.model import ScriptedModel
from tests.servers.synapse import Person
from tests.system.outside import event, judge, line_of, wait_until_settled
from tests.system.service import MusherProcess

pytestmark = pytest.mark.skipif(library() is None, reason="SQLite is built into this Python and can't be watched")

CALLS: Final = 60
"""A turn makes a few more, from the message that comes to the reply that is sent."""
DRAWN: Final = int(os.environ.get("MUSHER_TEST_WRITES", "3"))
"""So many of the calls are tried; 60 are all."""
SEED: Final = 7
LONG: Final = 120.0
"""Seconds for what has to wait for a start, on a machine that is busy."""


def drawn() -> list[tuple[int, str]]:
    chance = random.Random(SEED)
    return [(call, chance.choice(["before", "torn"])) for call in sorted(chance.sample(range(1, CALLS + 1), DRAWN))]


async def test_a_kill_at_a_write_of_a_turn_loses_and_repeats_nothing(
    musher: MusherProcess, model: ScriptedModel, alice: Person, room: str
) -> None:
    armed = musher.folder / "armed"
    posted: list[dict[str, str]] = []
    said = ""
    for call, how in drawn():
        await musher.kill()
        musher.launch = ("-m", "tests.system.dying", str(armed), str(call), how)
        await musher.start(ready=False)
        if posted:  # what the last death left open is settled in peace
            await wait_until_settled(alice, room, said, musher.user_id, LONG)
        posted.append(event(f"story-{call}", event_id=f"e{call}"))
        await musher.post_events(posted[-1], within=LONG)
        armed.touch()
        said = await alice.say(room, f"question {call}")
        await musher.wait_until_ended()
        armed.unlink()
    await musher.kill()
    await musher.start(ready=False)
    await wait_until_settled(alice, room, said, musher.user_id, LONG)
    verdict = await judge(alice, room, musher.user_id, model)
    assert verdict.lines == [line_of(each) for each in posted]
