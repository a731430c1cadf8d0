"""Transcripts that have outgrown the model's context are rolled, after a turn and never in one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from crdt import Store
from tests.bot.answering import Room
from tests.bot.edge import ALICE, ROOM


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with Store.open(tmp_path / "musher.db") as store:
        yield Room.of(store)


async def test_a_transcript_that_outgrows_the_context_is_rolled_between_turns(room: Room) -> None:
    room.change(context_tokens=2048)
    for number in range(8):
        await room.says(f"question {number} " + "x" * 1000)
        await room.answer()
        entries = await room.transcript()
        assert [entry.role for entry in entries] == ["user", "assistant"] * (len(entries) // 2)
    assert len(entries) < 10
    assert entries[-2].text.startswith(f"<{ALICE}>: question 7")


async def test_a_transcript_is_never_rolled_while_a_turn_is_open(room: Room) -> None:
    await room.says("begun elsewhere")
    await room.store.begin_turn(ROOM, "$elsewhere", "begun elsewhere")
    room.change(context_tokens=1024)
    with capture_logs() as logs:
        for number in range(3):
            await room.says(f"question {number} " + "x" * 900)
            await room.answer()
    assert {line["event"] for line in logs} & {"roll_postponed", "turn_broke"} == {"roll_postponed"}
    entries = await room.transcript()
    assert entries[0].key == "$elsewhere"
    assert [entry.role for entry in entries] == ["user", *["user", "assistant"] * (len(entries) // 2)]


async def test_a_transcript_that_outgrows_a_smaller_context_is_cut_for_the_model_and_then_rolled(room: Room) -> None:
    for number in range(6):
        await room.says(f"question {number} " + "x" * 900)
        await room.answer()
    room.change(context_tokens=2048)
    await room.says("short")
    await room.answer()
    assert len(room.model.asked[-1]) < 2 * 6
    assert len(await room.transcript()) < 2 * 6
