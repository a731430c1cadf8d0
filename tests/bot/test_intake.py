from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bot import intake, pace
from bot.health import Health
from bot.intake import LONG_POLL_MS, Intake
from bot.matrix import (
    Edit,
    Invite,
    LoggedOut,
    LoginRefused,
    NotAHomeserver,
    RateLimited,
    Redaction,
    RoomMessage,
    SyncBatch,
    Unreachable,
)
from bot.pace import Pace
from bot.policy import Details, Rules
from crdt import Message, Store, StoreFull, StoreUnavailable
from tests.bot.edge import ALICE, BOB, ROOM, Disk, Rooms, until
from tests.crdt.breakage import commit_in_doubt

OTHER = "!other:example.org"
SERVER = "https://example.org"
DOWN = Unreachable(SERVER, "no connection")
LOGGED_OUT = LoggedOut("@bot:example.org", SERVER, soft=False)


@dataclass
class Door:
    """The intake between a homeserver's syncs and a store."""

    store: Store
    rooms: Rooms
    health: Health
    woken: list[str] = field(default_factory=list)
    invited: list[Invite] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    logins: deque[Exception | None] = field(default_factory=deque)
    logged_in: int = 0

    def intake(self, **rules: Any) -> Intake:
        return Intake(
            self.store,
            self.rooms,
            Pace(),
            self.health,
            Rules(allows=lambda user: user == ALICE, **rules),
            wake=self.woken.append,
            log_in_again=self._log_in,
            invited=self.invited.append,
            left=self.left.append,
        )

    async def _log_in(self) -> None:
        self.logged_in += 1
        error = self.logins.popleft() if self.logins else None
        if error is not None:
            raise error

    @asynccontextmanager
    async def running(self, since: str | None = "s0", **rules: Any) -> AsyncIterator[asyncio.Task[None]]:
        self.rooms.idle.clear()
        task = asyncio.create_task(self.intake(**rules).run(since))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def takes_in(self, *batches: SyncBatch | Exception, since: str | None = "s0", **rules: Any) -> None:
        """Run until all batches have been taken in, and the next sync waits."""
        self.rooms.batches.extend(batches)
        async with self.running(since, **rules) as task:
            await until(lambda: self.rooms.idle.is_set() or task.done())
            if task.done():
                await task

    async def waiting(self, room: str = ROOM) -> list[Message]:
        return await self.store.waiting(room)


@pytest.fixture
async def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Door]:
    monkeypatch.setattr(pace, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(pace, "LONGEST_PAUSE_S", 0.002)
    monkeypatch.setattr(pace, "LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(intake, "STORE_RETRY_S", 0.001)
    monkeypatch.setattr(intake, "SYNCS_APART_S", 0.001)
    async with Store.open(tmp_path / "musher.db") as store:
        yield Door(store, Rooms(), Health("sync"))


def said(key: str, **fields: Any) -> RoomMessage:
    values: dict[str, Any] = {
        "room_id": ROOM,
        "sender": ALICE,
        "body": f"text of {key}",
        "origin_ms": time.time_ns() // 1_000_000,
    }
    return RoomMessage(key, **(values | fields))


def batch(token: str, *messages: RoomMessage, **fields: Any) -> SyncBatch:
    return SyncBatch(token, messages=messages, **fields)


async def test_messages_are_stored_with_the_token_and_wake_their_room(door: Door) -> None:
    await door.takes_in(batch("s1", said("$1", thread_root="$root"), said("$2", room_id=OTHER)), batch("s2"))
    assert await door.waiting() == [Message("$1", ROOM, ALICE, "text of $1", details=Details("$root", ROOM).dump())]
    assert [each.key for each in await door.waiting(OTHER)] == ["$2"]
    assert sorted(door.woken) == sorted([ROOM, OTHER])
    assert await door.store.read_cursor() == "s2"
    assert door.rooms.asked == [("s0", LONG_POLL_MS), ("s1", LONG_POLL_MS), ("s2", LONG_POLL_MS)]
    assert door.health.ready()


async def test_the_first_sync_of_all_does_not_wait_for_news(door: Door) -> None:
    await door.takes_in(batch("s1"), since=None)
    assert door.rooms.asked == [(None, 0), ("s1", LONG_POLL_MS)]


async def test_messages_of_people_who_are_not_allowed_are_never_stored(door: Door) -> None:
    with capture_logs() as logs:
        await door.takes_in(batch("s1", said("$1", sender=BOB)))
    assert await door.waiting() == []
    assert door.woken == []
    (line,) = [line for line in logs if line["event"] == "message_not_answered"]
    assert (line["message"], line["reason"]) == ("$1", "not allowed")
    stored = await door.store._database.read(lambda connection: connection.execute("SELECT * FROM inbox").fetchall())
    assert stored == []


async def test_messages_that_are_too_old_become_context_and_wake_nobody(door: Door) -> None:
    await door.takes_in(batch("s1", said("$1", origin_ms=1)))
    assert [(each.key, each.context) for each in await door.waiting()] == [("$1", True)]
    assert door.woken == []


async def test_where_only_mentions_are_answered_the_rest_is_context(door: Door) -> None:
    await door.takes_in(batch("s1", said("$1"), said("$2", mentions_me=True)), respond_to="mentions")
    assert [(each.key, each.context) for each in await door.waiting()] == [("$1", True), ("$2", False)]


async def test_an_edit_changes_a_message_that_waits_and_only_its_author_may(door: Door) -> None:
    edits = (Edit("$1", ROOM, ALICE, "better"), Edit("$2", ROOM, BOB, "forged"))
    await door.takes_in(batch("s1", said("$1"), said("$2")), batch("s2", edits=edits))
    assert [each.text for each in await door.waiting()] == ["better", "text of $2"]


async def test_a_message_that_is_taken_back_is_settled(door: Door) -> None:
    await door.takes_in(batch("s1", said("$1"), said("$2"), redactions=(Redaction("$1", ROOM, ALICE),)))
    assert [each.key for each in await door.waiting()] == ["$2"]


async def test_a_message_that_comes_twice_is_stored_once(door: Door) -> None:
    await door.takes_in(batch("s1", said("$1")), batch("s2", said("$1")))
    assert len(await door.waiting()) == 1
    assert door.woken == [ROOM]


@pytest.mark.parametrize("error", [DOWN, RateLimited(SERVER, 0.001)])
async def test_a_sync_that_fails_in_passing_is_repeated_from_the_same_token(door: Door, error: Exception) -> None:
    await door.takes_in(error, error, batch("s1", said("$1")))
    assert [since for since, _ in door.rooms.asked] == ["s0", "s0", "s0", "s1"]
    assert len(await door.waiting()) == 1


async def test_an_outage_is_told_of_once_and_its_end(door: Door) -> None:
    with capture_logs() as logs:
        await door.takes_in(*[DOWN] * 20, batch("s1"))
    told = [line for line in logs if line["log_level"] != "debug" and line["event"].startswith(("sync", "homeserver"))]
    assert [line["event"] for line in told] == [
        "sync_failed",
        "homeserver_pause",
        "homeserver_pause_over",
        "sync_failed_over",
    ]
    assert told[-1]["repeated"] == 19


async def test_the_end_of_a_fault_is_not_waited_for_in_a_long_poll(door: Door) -> None:
    await door.takes_in(batch("s1"), DOWN, DOWN, batch("s2"))
    assert [timeout_ms for _, timeout_ms in door.rooms.asked] == [LONG_POLL_MS, LONG_POLL_MS, 0, 0, LONG_POLL_MS]


async def test_while_the_homeserver_is_down_the_service_is_not_ready(door: Door) -> None:
    await door.takes_in(batch("s1"))
    assert door.health.ready()
    await door.takes_in(DOWN, since="s1")
    assert door.health.unready() == {"sync": str(DOWN)}
    await door.takes_in(batch("s2"), since="s1")
    assert door.health.ready()


async def test_what_a_full_disk_refused_is_taken_in_later_and_wakes_its_room(door: Door) -> None:
    disk = Disk(door.store)
    disk.full_for = 2
    with capture_logs() as logs:
        await door.takes_in(*[batch("s1", said("$1"))] * 3)
    assert [since for since, _ in door.rooms.asked] == ["s0", "s0", "s0", "s1"]
    assert [each.key for each in await door.waiting()] == ["$1"]
    assert door.woken == [ROOM]
    told = [(line["event"], line["log_level"]) for line in logs if line["event"].startswith("sync_not_stored")]
    assert told == [("sync_not_stored", "error"), ("sync_not_stored", "debug"), ("sync_not_stored_over", "info")]


async def test_a_disk_that_fills_after_the_messages_were_stored_loses_no_wake(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    await door.store.admit([Message("$0", OTHER, ALICE, "before")])
    settle = door.store.settle

    async def fails_once(*arguments: Any) -> None:
        monkeypatch.setattr(door.store, "settle", settle)
        raise StoreFull(str(door.store.path))

    monkeypatch.setattr(door.store, "settle", fails_once)
    news = batch("s1", said("$1"), left=(OTHER,))
    await door.takes_in(news, news)
    assert door.woken == [ROOM]
    assert await door.waiting(OTHER) == []


async def test_messages_whose_storing_was_reported_as_failed_and_yet_was_done_wake_their_room(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit = door.store.admit

    async def in_doubt(*arguments: Any, **more: Any) -> None:
        monkeypatch.setattr(door.store, "admit", admit)
        with commit_in_doubt(door.store):
            await admit(*arguments, **more)
        raise StoreUnavailable(str(door.store.path), "can't be read", "see to the disk")

    monkeypatch.setattr(door.store, "admit", in_doubt)
    news = batch("s1", said("$1"))
    await door.takes_in(news, news, news)
    assert [each.key for each in await door.waiting()] == ["$1"]
    assert door.woken == [ROOM]


# Rooms that come and go


async def test_invitations_and_rooms_that_are_left_are_told_of(door: Door) -> None:
    invite = Invite(ROOM, ALICE)
    await door.takes_in(batch("s1", invites=(invite,)), batch("s2", left=(ROOM,)))
    assert (door.invited, door.left) == ([invite], [ROOM])


async def test_an_invitation_that_came_with_messages_that_could_not_be_stored_is_not_lost(door: Door) -> None:
    """A process's first sync tells of invitations from before its token; its repetition does not."""
    Disk(door.store).full_for = 1
    await door.takes_in(batch("s1", invites=(Invite(ROOM, ALICE),)), batch("s1"))
    assert door.invited == [Invite(ROOM, ALICE)]


async def test_what_waits_in_a_room_that_is_gone_is_settled(door: Door) -> None:
    await door.takes_in(
        batch("s1", said("$1"), said("$2", origin_ms=1), said("$3", room_id=OTHER)), batch("s2", left=(ROOM,))
    )
    assert await door.waiting() == []
    assert len(await door.waiting(OTHER)) == 1
    outcomes = await door.store._database.read(
        lambda connection: connection.execute(
            "SELECT DISTINCT outcome FROM inbox WHERE session_id = ?", (ROOM,)
        ).fetchall()
    )
    assert outcomes == [("room gone",)]


async def test_a_turn_that_was_begun_when_its_room_went_stays_to_be_completed(door: Door) -> None:
    await door.takes_in(batch("s1", said("$1"), said("$2")))
    turn = await door.store.begin_turn(ROOM, "$1", "text")
    await door.takes_in(batch("s2", left=(ROOM,)), since="s1")
    assert [each.key for each in await door.waiting()] == ["$1"]
    await door.store.complete_turn(turn, "reply")
    await door.store.roll_session(ROOM, 2)
    assert await door.waiting() == []


# The login


async def test_a_login_that_was_ended_is_made_again_and_the_sync_repeated(door: Door) -> None:
    await door.takes_in(LOGGED_OUT, batch("s1", said("$1")))
    assert door.logged_in == 1
    assert [since for since, _ in door.rooms.asked] == ["s0", "s0", "s1"]
    assert len(await door.waiting()) == 1


NOT_STORED = StoreUnavailable("musher.db", "failed", "check the disk")


@pytest.mark.parametrize(
    "error", [DOWN, RateLimited(SERVER, 0.001), NotAHomeserver(SERVER, "it speaks HTML"), NOT_STORED]
)
async def test_a_login_that_fails_in_passing_is_tried_again(
    door: Door, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the next sync: that may succeed with a login that is made, but not seen to."""
    monkeypatch.setattr(intake, "LOGIN_EVERY_S", 0.001)
    door.logins.extend([error, error, None])
    await door.takes_in(LOGGED_OUT, batch("s1"))
    assert door.logged_in == 3
    assert await door.store.read_cursor() == "s1"


@pytest.mark.parametrize("error", [LOGGED_OUT, LoginRefused("@bot:example.org", SERVER, "wrong password", "check it")])
async def test_without_a_way_back_in_the_intake_ends_with_that_error(door: Door, error: Exception) -> None:
    door.logins.append(error)
    with pytest.raises(type(error)):
        await door.takes_in(LOGGED_OUT)


async def test_message_text_is_not_logged(door: Door) -> None:
    with capture_logs() as logs:
        await door.takes_in(batch("s1", said("$1", body="a secret"), said("$2", body="a secret", sender=BOB)))
    assert logs
    assert "secret" not in str(logs)


async def test_a_login_that_helps_nothing_is_not_made_in_a_hot_loop(door: Door) -> None:
    await door.takes_in(*[LOGGED_OUT] * 10, batch("s1", said("$1")))
    assert door.logged_in == 1
    assert [each.key for each in await door.waiting()] == ["$1"]


async def test_a_sync_without_news_costs_no_commit(door: Door) -> None:
    await door.takes_in(batch("s1"))
    before = (await door.store.statistics()).commits
    await door.takes_in(batch("s1"), batch("s1"), since="s1")
    assert (await door.store.statistics()).commits == before
    await door.takes_in(batch("s1", said("$1")), since="s1")
    assert [each.key for each in await door.waiting()] == ["$1"]


async def test_what_was_said_before_a_database_is_new_in_a_room_is_not_answered_again(door: Door) -> None:
    an_hour_ago = time.time_ns() // 1_000_000 - 3_600_000
    await door.takes_in(batch("s1", said("$1", origin_ms=an_hour_ago), said("$2")), since=None)
    assert [(each.key, each.context) for each in await door.waiting()] == [("$1", True), ("$2", False)]
    await door.takes_in(batch("s2", said("$3", origin_ms=an_hour_ago)), since="s1")
    assert [(each.key, each.context) for each in await door.waiting()][-1] == ("$3", False)
