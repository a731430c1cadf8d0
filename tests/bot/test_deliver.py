from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bot import deliver
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
    RoomReplaced,
)
from crdt import Delivery
from tests.bot.edge import ROOM, Disk, eventually, nowhere, until
from tests.bot.posting import DOWN, OTHER, Post


@pytest.fixture
async def post(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Post]:
    async with Post.of(tmp_path / "musher.db", monkeypatch) as post:
        yield post


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


async def test_the_first_attempt_is_noted_before_it_is_made(post: Post) -> None:
    await post.queue("one")
    gate = asyncio.Event()
    post.homeserver.fail(ROOM, DOWN, gate)
    before = time.time()
    async with post.running():
        await until(lambda: len(post.homeserver.requests) == 2)
        (delivery,) = await post.store.due_deliveries()
    assert delivery.attempts == 1
    assert delivery.first_attempt_at is not None
    assert before <= delivery.first_attempt_at <= time.time()


async def test_what_was_queued_as_attempted_is_sent_without_another_commit(post: Post) -> None:
    told = Delivery("d1", ROOM, '{"body": "one"}', attempts=1, first_attempt_at=0.0)
    post.deliveries.expect([told])
    await post.store.settle([], "answered", [told])
    commits = post.store._database.commits
    await post.work()
    assert post.homeserver.texts() == ["one"]
    assert post.homeserver.looked_for == []
    assert post.store._database.commits == commits + 1, "that it was sent"


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
    post.login += 1
    await post.work()
    assert post.homeserver.looked_for == [delivery_id]
    assert len(post.homeserver.requests) == (1 if arrived else 2)


@pytest.mark.parametrize("arrived", [True, False])
async def test_a_delivery_that_an_earlier_start_has_tried_is_looked_for_first(post: Post, arrived: bool) -> None:
    """Whatever the wall clock says: it may have stepped in between."""
    (delivery_id,) = await post.queue("one")
    if arrived:
        post.homeserver.loses_answer.add(ROOM)
    post.homeserver.fail(ROOM, DOWN)
    await post.deliveries.send_due()
    post.deliveries = Deliveries(post.store, post.homeserver, post.pace, nowhere)
    await post.work()
    assert post.homeserver.looked_for == [delivery_id]
    assert len(post.homeserver.requests) == (1 if arrived else 2)
    assert post.homeserver.texts() == ["one"]


async def test_a_delivery_that_can_not_be_looked_for_is_sent(post: Post) -> None:
    await post.queue("one")
    post.homeserver.fail(ROOM, DOWN)
    await post.deliveries.send_due()
    post.login += 1
    post.homeserver.refuses_search = Refused("https://example.org", "M_NOT_FOUND", "Unrecognized request")
    await post.work()
    assert len(post.homeserver.looked_for) == 1
    assert post.homeserver.texts() == ["one"]


async def test_a_step_of_the_wall_clock_makes_no_transaction_id_older(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    await post.queue("one")
    post.homeserver.fail(ROOM, DOWN)
    await post.deliveries.send_due()
    later = time.time() + 20 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    await post.work()
    assert post.homeserver.looked_for == []
    assert post.homeserver.texts() == ["one"]


async def test_what_was_never_tried_is_not_looked_for(post: Post) -> None:
    await post.queue("one")
    post.login += 1
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


async def test_what_a_replaced_room_refuses_is_sent_where_its_conversation_goes_on(post: Post) -> None:
    post.homeserver.fail(ROOM, *[RoomReplaced(ROOM)] * 1000)
    await post.queue("one", "two")
    async with post.running():
        await until(lambda: len(post.homeserver.requests) >= 2)
        assert not await post.is_empty(), "nobody knows yet where"
        post.replaced[ROOM] = OTHER
        await eventually(post.is_empty)
    assert post.homeserver.texts() == []
    assert post.homeserver.texts(OTHER) == ["one", "two"]


async def test_a_reply_in_a_thread_leaves_it_for_another_room(post: Post) -> None:
    reply = {"m.in_reply_to": {"event_id": "$asked"}}
    thread = {"rel_type": "m.thread", "event_id": "$root", "is_falling_back": False, **reply}
    post.homeserver.fail(ROOM, RoomReplaced(ROOM))
    post.replaced[ROOM] = OTHER
    content = {"body": "one", "m.relates_to": thread}
    await post.store.settle([], "answered", [Delivery("d1", ROOM, json.dumps(content))])
    await post.work()
    assert [sent.content["m.relates_to"] for sent in post.homeserver.requests] == [thread, reply]


async def test_what_a_replaced_room_refuses_does_not_wait_for_ever(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliver, "REPLACEMENT_PATIENCE_S", 0.05)
    post.homeserver.fail(ROOM, *[RoomReplaced(ROOM)] * 1000)
    await post.queue("never")
    with capture_logs() as logs:
        await post.work()
    assert len(post.homeserver.requests) > 1
    assert [line["reason"] for line in logs if line["event"] == "delivery_dropped"] == ["RoomReplaced"]


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
        await asyncio.wait({task}, timeout=30)
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
