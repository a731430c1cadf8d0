from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bot import deliver, pace
from bot.deliver import MAX_PARALLEL_SENDS, Deliveries
from bot.matrix import (
    EncryptedRoom,
    Forbidden,
    KeysDamaged,
    LoggedOut,
    MatrixError,
    NotInRoom,
    RateLimited,
    Refused,
    Unreachable,
)
from bot.pace import Pace
from crdt import Delivery, Store
from tests.bot.edge import ROOM, Disk, Homeserver, eventually, nowhere, until

OTHER = "!other:example.org"
DOWN = Unreachable("https://example.org", "no connection")


@dataclass
class Post:
    """An outbox, the homeserver that it is sent to, and what sends."""

    store: Store
    homeserver: Homeserver
    pace: Pace
    deliveries: Deliveries
    login_made_at: float = 0.0
    reached: list[str] = field(default_factory=list)

    async def queue(self, *bodies: str, room: str = ROOM) -> list[str]:
        ids = [f"musher-{room}-{body}" for body in bodies]
        deliveries = [
            Delivery(delivery_id, room, json.dumps({"body": body}))
            for delivery_id, body in zip(ids, bodies, strict=True)
        ]
        await self.store.settle([], "answered", deliveries)
        self.deliveries.wake()
        return ids

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.deliveries.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def is_empty(self) -> bool:
        return not await self.store.due_deliveries()

    async def work(self) -> None:
        """Run until the outbox is empty."""
        async with self.running():
            await eventually(self.is_empty)


@pytest.fixture
async def post(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Post]:
    monkeypatch.setattr(pace, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(pace, "LONGEST_PAUSE_S", 0.02)
    monkeypatch.setattr(pace, "FIRST_ROOM_PAUSE_S", 0.01)
    monkeypatch.setattr(pace, "SHARE_S", 0.01)
    monkeypatch.setattr(pace, "LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(deliver, "STORE_RETRY_S", 0.001)
    async with Store.open(tmp_path / "musher.db") as store:
        homeserver, shared_pace = Homeserver(), Pace()
        made: list[Post] = []
        deliveries = Deliveries(store, homeserver, shared_pace, nowhere, logged_in_at=lambda: made[0].login_made_at)
        made.append(Post(store, homeserver, shared_pace, deliveries))
        yield made[0]


async def test_what_is_queued_arrives_in_each_rooms_order(post: Post) -> None:
    for number in range(5):
        await post.queue(f"a{number}")
        await post.queue(f"b{number}", room=OTHER)
    await post.work()
    assert post.homeserver.texts() == [f"a{n}" for n in range(5)]
    assert post.homeserver.texts(OTHER) == [f"b{n}" for n in range(5)]
    assert len(post.homeserver.requests) == 10
    assert all(sent.event_type == "m.room.message" for sent in post.homeserver.requests)


@pytest.mark.parametrize(
    "error",
    [DOWN, RateLimited("https://example.org", 0.01), LoggedOut("@bot:example.org", "https://example.org", False)],
)
async def test_what_fails_in_passing_is_sent_again_with_the_same_transaction_id(post: Post, error: MatrixError) -> None:
    (first, second) = await post.queue("one", "two")
    post.homeserver.fail(ROOM, error, error)
    await post.work()
    assert [sent.txn_id for sent in post.homeserver.requests] == [first] * 3 + [second]
    assert post.homeserver.texts() == ["one", "two"]


async def test_an_answer_that_is_lost_makes_no_second_event(post: Post) -> None:
    await post.queue("one")
    post.homeserver.loses_answer.add(ROOM)
    post.homeserver.fail(ROOM, DOWN)
    await post.work()
    assert len(post.homeserver.requests) == 2
    assert post.homeserver.texts() == ["one"]
    assert post.homeserver.looked_for == [], "the transaction id is still known"


async def test_each_attempt_is_counted_before_it_is_made(post: Post) -> None:
    await post.queue("one")
    gate = asyncio.Event()
    post.homeserver.fail(ROOM, DOWN, gate)
    before = time.time()
    async with post.running():
        await until(lambda: len(post.homeserver.requests) == 2)
        (delivery,) = await post.store.due_deliveries()
    assert delivery.attempts == 2
    assert delivery.first_attempt_at is not None
    assert before <= delivery.first_attempt_at <= time.time()


@pytest.mark.parametrize("arrived", [True, False])
async def test_a_delivery_in_doubt_since_long_is_looked_for_first(
    post: Post, monkeypatch: pytest.MonkeyPatch, arrived: bool
) -> None:
    (delivery_id,) = await post.queue("one")
    if arrived:
        post.homeserver.loses_answer.add(ROOM)
    post.homeserver.fail(ROOM, DOWN)
    await post.deliveries.send_due()
    monkeypatch.setattr(deliver, "TRANSACTION_ID_TRUSTED_S", 0)
    await post.work()
    assert post.homeserver.looked_for == [delivery_id]
    assert len(post.homeserver.requests) == (1 if arrived else 2)
    assert post.homeserver.texts() == ["one"]


@pytest.mark.parametrize("arrived", [True, False])
async def test_a_delivery_from_before_the_present_login_is_looked_for_first(post: Post, arrived: bool) -> None:
    (delivery_id,) = await post.queue("one")
    if arrived:
        post.homeserver.loses_answer.add(ROOM)
    post.homeserver.fail(ROOM, DOWN)
    await post.deliveries.send_due()
    post.login_made_at = time.time()
    await post.work()
    assert post.homeserver.looked_for == [delivery_id]
    assert len(post.homeserver.requests) == (1 if arrived else 2)


async def test_what_was_never_tried_is_not_looked_for(post: Post) -> None:
    await post.queue("one")
    post.login_made_at = time.time() + 60
    await post.work()
    assert post.homeserver.looked_for == []


def test_transaction_ids_are_trusted_for_half_of_the_day_that_synapse_keeps_them() -> None:
    assert deliver.TRANSACTION_ID_TRUSTED_S == 12 * 3600


@pytest.mark.parametrize(
    "refusal",
    [
        NotInRoom(ROOM),
        Forbidden(ROOM, "no power"),
        EncryptedRoom(ROOM),
        Refused("https://example.org", "M_TOO_LARGE", "too large"),
    ],
)
async def test_what_is_refused_for_good_is_dropped_and_the_next_is_sent(post: Post, refusal: MatrixError) -> None:
    await post.queue("one", "two")
    post.homeserver.fail(ROOM, refusal)
    with capture_logs() as logs:
        await post.work()
    assert len(post.homeserver.requests) == 2
    assert post.homeserver.texts() == ["two"]
    assert [line["reason"] for line in logs if line["event"] == "delivery_refused"] == [str(refusal)]


async def test_nothing_is_dropped_when_the_key_file_is_damaged(post: Post) -> None:
    await post.queue("a")
    post.homeserver.fail(ROOM, KeysDamaged("keys", "malformed"))
    with pytest.raises(ExceptionGroup) as failed:
        await post.deliveries.run()
    assert failed.group_contains(KeysDamaged)
    assert not await post.is_empty()


async def test_a_room_that_fails_holds_up_no_other(post: Post) -> None:
    post.homeserver.fail(ROOM, *[DOWN] * 1000)
    await post.queue("never")
    await post.queue(*(str(n) for n in range(10)), room=OTHER)
    async with post.running():
        await until(lambda: len(post.homeserver.texts(OTHER)) == 10)
    assert post.homeserver.texts() == []


async def test_a_room_that_hangs_holds_up_no_other(post: Post) -> None:
    gate = asyncio.Event()
    post.homeserver.fail(ROOM, gate)
    await post.queue("late")
    async with post.running():
        await until(lambda: post.homeserver.requests)
        await post.queue("1", "2", "3", room=OTHER)
        await until(lambda: len(post.homeserver.texts(OTHER)) == 3)
        await post.queue("4", room=OTHER)
        await until(lambda: len(post.homeserver.texts(OTHER)) == 4)
        gate.set()
        await eventually(post.is_empty)
    assert [sent.room_id for sent in post.homeserver.requests].count(ROOM) == 1


async def test_no_more_is_sent_at_once_than_allowed(post: Post) -> None:
    gate = asyncio.Event()
    for n in range(MAX_PARALLEL_SENDS + 4):
        post.homeserver.fail(f"!{n}", gate)
        await post.queue("text", room=f"!{n}")
    async with post.running():
        await until(lambda: len(post.homeserver.requests) == MAX_PARALLEL_SENDS)
        assert len(await post.store.due_deliveries()) == MAX_PARALLEL_SENDS + 4
        assert len(post.homeserver.requests) == MAX_PARALLEL_SENDS
        gate.set()
        await eventually(post.is_empty)
    assert len(post.homeserver.requests) == MAX_PARALLEL_SENDS + 4


async def test_no_delivery_is_sent_twice_however_the_outbox_is_woken(post: Post) -> None:
    async with post.running():
        for number in range(60):
            await post.queue(f"{number}", room=f"!{number % 7}")
            post.deliveries.wake()
            if number % 3:
                await asyncio.sleep(0)
        await eventually(post.is_empty)
    assert len(post.homeserver.requests) == 60
    for room in range(7):
        assert post.homeserver.texts(f"!{room}") == [str(n) for n in range(60) if n % 7 == room]


async def test_a_wake_is_never_lost(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst moment: the outbox has been read and was empty, and the loop is about to wait."""
    read = post.store.due_deliveries
    late = True

    async def read_then_queue() -> list[Delivery]:
        nonlocal late
        found = await read()
        if late:
            late = False
            await post.queue("late")
        return found

    monkeypatch.setattr(post.store, "due_deliveries", read_then_queue)
    async with post.running():
        await until(lambda: post.homeserver.texts() == ["late"])


async def test_a_full_disk_stops_nothing_for_good(post: Post) -> None:
    await post.queue("one", "two")
    disk = Disk(post.store)
    disk.full_for = 3
    with capture_logs() as logs:
        await post.work()
    assert post.homeserver.texts() == ["one", "two"]
    told = [line for line in logs if line["event"].startswith("delivery_postponed") and line["log_level"] != "debug"]
    assert [line["event"] for line in told] == ["delivery_postponed", "delivery_postponed_over"]


async def test_what_arrived_but_could_not_be_noted_is_sent_again_under_the_same_id(post: Post) -> None:
    await post.queue("one")
    disk = Disk(post.store)
    gate = asyncio.Event()
    post.homeserver.fail(ROOM, gate)
    async with post.running():
        await until(lambda: post.homeserver.requests)
        disk.full_for = 1
        gate.set()
        await eventually(post.is_empty)
    assert len(post.homeserver.requests) == 2
    assert post.homeserver.texts() == ["one"]


async def test_an_outbox_that_can_not_be_read_ends_the_service_with_that_error(post: Post) -> None:
    await post.queue("one")
    await post.store._database.write(lambda connection: connection.execute("UPDATE outbox SET content = 'forged'"))
    async with post.running() as task:
        await asyncio.wait({task}, timeout=5)
    assert "StoreDamaged" in repr(task.exception())


async def test_a_stop_in_the_middle_of_a_send_leaves_it_in_doubt_for_the_next_start(post: Post) -> None:
    gate = asyncio.Event()
    post.homeserver.fail(ROOM, gate)
    await post.queue("one")
    async with post.running() as task:
        await until(lambda: post.homeserver.requests)
    assert task.cancelled()
    (delivery,) = await post.store.due_deliveries()
    assert delivery.attempts == 1
    await post.work()
    assert post.homeserver.texts() == ["one"]


async def test_each_delivery_passes_the_pause_point_before_it_is_noted(post: Post) -> None:
    await post.queue("one")
    seen: list[tuple[str, int]] = []

    async def reached(point: str) -> None:
        seen.append((point, len(await post.store.due_deliveries())))

    sender = Deliveries(post.store, post.homeserver, post.pace, reached)
    assert await sender.send_due() == 1
    assert await sender.send_due() == 0
    assert seen == [("sent", 1)]


async def test_an_outage_is_met_with_few_requests_and_ends_by_itself(post: Post) -> None:
    for n in range(3):
        post.homeserver.fail(f"!{n}", *[DOWN] * 5)
        await post.queue("text", room=f"!{n}")
    with capture_logs() as logs:
        await post.work()
    assert len(post.homeserver.requests) == 3 * 6
    told = [line["event"] for line in logs if line["log_level"] != "debug"]
    assert told.count("homeserver_pause") == 1
    assert told.count("room_unreachable") <= 3


async def test_a_room_that_fails_while_others_are_served_is_tried_less_and_less(post: Post) -> None:
    """Its own pauses grow, and no other room waits for it."""
    post.homeserver.fail(ROOM, *[DOWN] * 1000)
    await post.queue("never")

    def tries() -> int:
        return sum(sent.room_id == ROOM for sent in post.homeserver.requests)

    async with post.running():
        for wanted in range(1, 6):
            await until(lambda wanted=wanted: tries() >= wanted)  # type: ignore[misc]
            await post.queue(f"{wanted}", room=OTHER)
            await until(lambda wanted=wanted: len(post.homeserver.texts(OTHER)) == wanted)  # type: ignore[misc]
            assert post.pace.open
        waits_s = post.deliveries._rooms.left(ROOM)
    assert waits_s > 5 * pace.FIRST_ROOM_PAUSE_S


async def test_rooms_whose_sends_are_limited_are_tried_at_moments_of_their_own(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "SHARE_S", 3600.0)
    rooms = [f"!{n}" for n in range(3)]
    async with post.running():
        for room in rooms:
            post.homeserver.fail(room, *[RateLimited("https://example.org", 0.0)] * 1000)
            await post.queue("late", room=room)
        await until(lambda: all(map(post.deliveries._rooms.is_failing, rooms)))
        assert sum(post.deliveries._rooms.left(room) > 30 for room in rooms) == 2


async def test_a_room_with_its_first_delivery_waits_while_another_fails_and_nothing_shows_which_of_the_two_is_to_blame(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "FIRST_ROOM_PAUSE_S", 0.1)
    monkeypatch.setattr(pace, "SHARE_S", 3600.0)
    async with post.running():
        post.homeserver.fail(ROOM, DOWN)
        await post.queue("late")
        await until(lambda: post.deliveries._rooms.is_failing(ROOM))
        await post.queue("first", room=OTHER)
        await eventually(post.is_empty)
    assert [sent.room_id for sent in post.homeserver.requests] == [ROOM, ROOM, OTHER]


async def test_a_room_that_answers_again_is_told_of(post: Post) -> None:
    post.homeserver.fail(ROOM, DOWN)
    await post.queue("one")
    with capture_logs() as logs:
        await post.work()
    told = [line["event"] for line in logs if line["event"].startswith("room_")]
    assert told == ["room_unreachable", "room_answers_again"]


async def test_rooms_that_fail_take_no_slots_from_those_that_do_not(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "FIRST_ROOM_PAUSE_S", 3600.0)
    monkeypatch.setattr(pace, "LONGEST_COMMON_PAUSE_S", 3600.0)
    rooms = [f"!{n}" for n in range(MAX_PARALLEL_SENDS + 4)]
    async with post.running():
        for room in rooms:
            post.homeserver.fail(room, DOWN)
            await post.queue("late", room=room)
            await until(lambda room=room: post.deliveries._rooms.is_failing(room))  # type: ignore[misc]
            await post.queue(f"beside {room}", room=OTHER)
            await until(lambda room=room: f"beside {room}" in post.homeserver.texts(OTHER))  # type: ignore[misc]
    assert len(post.homeserver.requests) == 2 * len(rooms)
