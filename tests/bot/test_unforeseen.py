"""An error that nobody foresaw, in any place: the room is told, the log has one trace, and everything else goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bot import intake, pace, policy, texts
from bot.deliver import Deliveries
from bot.health import Health
from bot.intake import Intake
from bot.invitations import Invitations
from bot.matrix import Invite, RoomMessage, SyncBatch
from bot.pace import Pace
from bot.policy import Rules
from bot.unforeseen import contained
from crdt import Delivery, Store
from tests.bot.answering import Room
from tests.bot.edge import ALICE, ROOM, Homeserver, Rooms, eventually, nowhere, until

OTHER = "!other:example.org"
RULES = Rules(allows=lambda user: user == ALICE)


class Panic(BaseException):
    """What a native extension raises when it gives up."""


ERRORS = (RuntimeError("a bug"), RecursionError(), MemoryError(), KeyError("missing"), Panic())
BESIDE_A_TURN = ("redactions.strike", "prompt.kept_entries")
"""Where something breaks before a turn or after it, the answer is given all the same."""


def broken(error: BaseException) -> Callable[..., Any]:
    def breaks(*_: object, **__: object) -> Any:
        raise error

    return breaks


def traces(logs: list[Any]) -> list[str]:
    """The lines that carry a trace."""
    return [line["event"] for line in logs if line.get("exc_info")]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store.open(tmp_path / "musher.db") as store:
        yield store


@pytest.fixture
def room(store: Store) -> Room:
    return Room.of(store)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("place", [*BESIDE_A_TURN, "next_turn", "prompt.model_messages", "reply_contents"])
async def test_wherever_a_turn_breaks_the_room_is_told_and_the_next_message_answered(
    room: Room, monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException
) -> None:
    if place == "redactions.strike":
        await room.says("a slip")
        await room.answer()
        await room.deliveries()
        await room.store.admit([], redactions=["$1"])
    await room.says("what breaks?")
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(f"bot.turn.{place}", broken(error))
        await room.answer()
    told = [content["body"] for content in await room.contents()]
    assert told == ([f"reply {room.said}"] if place in BESIDE_A_TURN else [texts.UNEXPECTED])
    assert set(traces(logs)) <= {"turn_broke", "room_work_failed", "redaction_failed"}
    assert traces(logs)
    await room.says("and now?")
    await room.answer()
    assert (await room.replies())[-1].startswith("reply")
    assert await room.store.waiting(ROOM) == []


@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_a_model_that_breaks_costs_one_notice_and_one_trace(room: Room, error: BaseException) -> None:
    room.model.tell(error)
    await room.says("what breaks?")
    with capture_logs() as logs:
        await room.answer()
    assert await room.replies() == [texts.UNEXPECTED]
    assert traces(logs) == ["turn_broke"]


class Fragile(Homeserver):
    """Breaks inside of our own code whenever something is sent to one room, but for notices if `notices` pass."""

    def __init__(self, error: BaseException, *, notices: bool) -> None:
        super().__init__()
        self.error = error
        self.notices = notices

    async def send(self, room_id: str, event_type: str, content: Any, txn_id: str) -> str:
        if room_id == ROOM and not (self.notices and content.get("msgtype") == "m.notice"):
            raise self.error
        return await super().send(room_id, event_type, content, txn_id)


@pytest.mark.parametrize("notices", [True, False])
@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_a_delivery_that_breaks_is_given_up_with_a_notice_and_other_rooms_get_theirs(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: BaseException, notices: bool
) -> None:
    monkeypatch.setattr(pace, "FIRST_ROOM_PAUSE_S", 0.001)
    monkeypatch.setattr(pace, "LONGEST_ROOM_PAUSE_S", 0.001)
    monkeypatch.setattr(pace, "SHARE_S", 0.001)
    homeserver = Fragile(error, notices=notices)
    deliveries = Deliveries(store, homeserver, Pace(), nowhere)
    for name in (ROOM, OTHER):
        await store.settle([], "answered", [Delivery(f"d-{name}", name, '{"body": "hello"}')])

    async def is_empty() -> bool:
        return not await store.due_deliveries()

    with capture_logs() as logs:
        sending = asyncio.create_task(deliveries.run())
        await eventually(is_empty)
        assert not sending.done()
        sending.cancel()
        await asyncio.wait({sending})
    assert homeserver.texts(OTHER) == ["hello"]
    assert homeserver.texts(ROOM) == ([texts.UNSENT] if notices else [])
    assert traces(logs) == ["delivery_broke"] * (1 if notices else 2)


@dataclass
class Door:
    """A sync loop between syncs that are told and a real store."""

    store: Store
    rooms: Rooms = field(default_factory=Rooms)
    health: Health = field(default_factory=lambda: Health("sync"))

    async def takes_in(self, *batches: SyncBatch) -> list[Any]:
        """Take in the syncs; returns what is logged."""
        self.rooms.batches.extend(batches)
        loop = Intake(
            self.store,
            self.rooms,
            Pace(),
            self.health,
            RULES,
            wake=lambda _: None,
            log_in_again=_never,
            invited=lambda _: None,
            left=lambda _: None,
        )
        with capture_logs() as logs:
            running = asyncio.create_task(loop.run("s0"))
            await until(lambda: self.rooms.idle.is_set() or running.done())
            assert not running.done()
            running.cancel()
            await asyncio.wait({running})
        return logs


async def _never() -> None:
    raise AssertionError("nobody was logged out")


@pytest.fixture
def door(store: Store, monkeypatch: pytest.MonkeyPatch) -> Door:
    monkeypatch.setattr(intake, "BROKEN_RETRY_S", 0.001)
    return Door(store)


async def test_a_room_of_which_something_could_not_be_read_is_told_so(door: Door) -> None:
    await door.takes_in(SyncBatch("s1", broken=(ROOM,)))
    assert [each.session_id for each in await door.store.due_deliveries()] == [ROOM]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_a_sync_that_breaks_is_taken_in_at_last_and_told_of_once(
    door: Door, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    decide, left = policy.decide, 5

    def breaks(*arguments: Any, **facts: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise error
        return decide(*arguments, **facts)

    monkeypatch.setattr("bot.intake.decide", breaks)
    batch = SyncBatch("s1", (RoomMessage("$1", ROOM, ALICE, "hello", 2**42),))
    logs = await door.takes_in(*[batch] * 6)
    assert [each.key for each in await door.store.waiting(ROOM)] == ["$1"]
    told = [line["event"] for line in logs if line["event"].startswith("sync") and line["log_level"] != "debug"]
    assert told == ["sync_broke", "sync_broke_over"]


class Doors(Rooms):
    """Cannot be entered by the first door."""

    async def join(self, room_id: str) -> None:
        if room_id == ROOM:
            raise Panic
        await super().join(room_id)


async def test_an_invitation_that_breaks_keeps_nobody_from_the_next() -> None:
    rooms = Doors()
    invitations = Invitations(rooms, Pace(), RULES)
    for name in (ROOM, OTHER):
        invitations.came(Invite(name, ALICE))
    with capture_logs() as logs:
        await invitations.answer_open()
    assert rooms.joined == [OTHER]
    assert traces(logs) == ["invite_broke"]


async def test_what_ends_a_task_is_let_through() -> None:
    for end in (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        with pytest.raises(end), contained("never"):
            raise end
    with pytest.raises(ValueError, match="foreseen"), contained("never", ValueError):
        raise ValueError("foreseen")
