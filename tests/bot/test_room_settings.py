"""What the operator configured for a room holds for the room that replaces it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bot.prompt import split_user
from bot.turn import RoomSettings
from crdt import PipelineEvent, Store
from tests.bot.answering import Room
from tests.bot.edge import ROOM

FORMER, UNRELATED = "!former:example.org", "!unrelated:example.org"


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with Store.open(tmp_path / "musher.db") as store:
        await store.append_events(
            [PipelineEvent(story_id, "2_current", "3_qa", "GatesStarted") for story_id in ("1", "2", "3")]
        )
        yield Room.of(store)


def only(story_id: str) -> RoomSettings:
    return RoomSettings(keep=lambda recorded: recorded.story_id == story_id)


async def answered(room: Room) -> tuple[list[str], list[str]]:
    """The events that the model was given, and the names of the log's lines."""
    await room.says("news?")
    with capture_logs() as logs:
        await room.answer()
    return split_user(room.model.asked[0][-1].content)[0], [line["event"] for line in logs]


async def test_a_filter_goes_along_when_its_room_is_replaced_and_the_log_says_what_to_configure(room: Room) -> None:
    room.change(rooms={UNRELATED: only("1"), FORMER: only("2")}, moved_to=lambda each: ROOM if each == FORMER else each)
    (line,), logs = await answered(room)
    assert 'story_id="2"' in line
    assert "room_settings_of_former_room" in logs


async def test_a_room_that_has_settings_of_its_own_needs_no_others(room: Room) -> None:
    room.change(rooms={FORMER: only("2"), ROOM: only("3")}, moved_to=lambda _: ROOM)
    (line,), logs = await answered(room)
    assert 'story_id="3"' in line
    assert "room_settings_of_former_room" not in logs
