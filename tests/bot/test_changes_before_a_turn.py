"""What people change or take back before a turn has begun is what the model is told, however late it comes in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from crdt import Edit, Message, Store
from tests.bot.answering import Room
from tests.bot.edge import ALICE, ROOM


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with Store.open(tmp_path / "musher.db") as store:
        yield Room.of(store)


def just_after_reading(room: Room, monkeypatch: pytest.MonkeyPatch, change: Callable[[], Awaitable[object]]) -> None:
    """Let a change commit between the reading of what waits and the begin of the turn, once."""
    read, changes = room.store.waiting, [change]

    async def waiting(session_id: str) -> list[Message]:
        found = await read(session_id)
        if changes:
            await changes.pop()()
        return found

    monkeypatch.setattr(room.store, "waiting", waiting)


async def test_a_message_taken_back_just_before_its_turn_begins_is_not_answered(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.says("my password is hunter2")
    just_after_reading(room, monkeypatch, lambda: room.store.admit([], redactions=["$1"]))
    await room.answer()
    assert room.model.asked == []
    assert await room.transcript() == []
    assert await room.deliveries() == []


async def test_a_message_edited_just_before_its_turn_begins_is_told_as_it_is_then(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.says("first", "secnd")
    just_after_reading(room, monkeypatch, lambda: room.store.admit([], edits=[Edit("$2", ALICE, "second")]))
    await room.answer()
    assert [asked[-1].content for asked in room.model.asked] == [f"<{ALICE}>: first\n<{ALICE}>: second"]
    assert await room.replies() == ["reply 1"]


async def test_one_of_a_burst_taken_back_just_before_the_turn_is_left_out(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.says("a slip", context=True)
    await room.says("first", "a slip too", "third")
    just_after_reading(room, monkeypatch, lambda: room.store.admit([], redactions=["$1", "$3"]))
    await room.answer()
    assert [asked[-1].content for asked in room.model.asked] == [f"<{ALICE}>: first\n<{ALICE}>: third"]


async def test_a_turn_that_came_with_a_replaced_room_ends_before_what_waits_in_the_new_one(room: Room) -> None:
    await room.says("in the new room, where it has to wait", session_id="!new")
    await room.says("in the old room")
    room.model.tell(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await room.turns.answer_next(ROOM)
    assert await room.store.move_session(ROOM, "!new")
    while await room.turns.answer_next("!new"):
        pass
    broken_off, again, after = room.model.asked
    assert again == broken_off
    assert [each.role for each in after] == ["system", "user", "assistant", "user"]
