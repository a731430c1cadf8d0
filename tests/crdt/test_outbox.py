"""The outbox: deliveries in the order of each room, each ended once."""

from __future__ import annotations

import time
from dataclasses import replace
from enum import Enum
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from crdt import Delivery, Store, verify_database
from tests.crdt.samples import OTHER_ROOM, ROOM, delivery, look, message, on_disk


class Kind(str, Enum):  # noqa: UP042 - a member of this one prints as `Kind.…`
    """Types of events, as a program may keep them."""

    STICKER = "m.sticker"


async def test_the_oldest_unsent_delivery_of_each_session_is_due(store: Store) -> None:
    await store.settle([], "", [delivery("a1", OTHER_ROOM), delivery("b1"), delivery("a2", OTHER_ROOM), delivery("b2")])
    assert await store.due_deliveries() == [delivery("a1", OTHER_ROOM), delivery("b1")]
    await store.delivery_sent("a1", "$sent")
    assert [one.delivery_id for one in await store.due_deliveries()] == ["b1", "a2"]


async def test_a_reply_and_its_deliveries_are_one_commit(path: Path) -> None:
    async with Store.open(path) as store:
        await store.admit([message("$1")])
        turn = await store.begin_turn(ROOM, "$1", "hello")
        sticker = replace(delivery("d1", content='{"a":"\ud800"}'), event_type="m.sticker")
        await store.complete_turn(turn, "hi", [sticker, delivery("d2")])
        await store.complete_turn(turn, "hi", [delivery("d3")])
    async with Store.open(path) as store:
        assert await store.due_deliveries() == [replace(sticker, content='{"a":"\ufffd"}')]
        await store.delivery_sent("d1", "$e1")
        assert await store.due_deliveries() == [delivery("d2")]
        await store.delivery_sent("d2", "$e2")
        assert await store.due_deliveries() == []


async def test_a_known_delivery_is_not_queued_again(path: Path) -> None:
    async with Store.open(path) as store:
        await store.settle([], "", [delivery("d1", content="first")])
        await store.settle([], "", [delivery("d1", content="second")])
        assert [one.content for one in await store.due_deliveries()] == ["first"]
        await store.delivery_sent("d1", "$e")
        await store.settle([], "", [delivery("d1", content="third")])
        assert await store.due_deliveries() == []


async def test_attempts_are_counted_and_the_first_one_dated_across_restarts(path: Path) -> None:
    before = time.time()
    async with Store.open(path) as store:
        await store.settle([], "", [delivery("d1")])
        await store.delivery_attempted("d1")
    async with Store.open(path) as store:
        (first,) = await store.due_deliveries()
        assert first.attempts == 1
        assert first.first_attempt_at is not None
        assert before <= first.first_attempt_at <= time.time()
        await store.delivery_attempted("d1")
        (second,) = await store.due_deliveries()
        assert (second.attempts, second.first_attempt_at) == (2, first.first_attempt_at)


async def test_the_first_attempt_may_be_queued_with_what_it_sends(path: Path) -> None:
    async with Store.open(path) as store:
        await store.settle([], "", [replace(delivery("d1"), attempts=1, first_attempt_at=5.0)])
    async with Store.open(path) as store:
        (queued,) = await store.due_deliveries()
        assert (queued.attempts, queued.first_attempt_at) == (1, 5.0)


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(Delivery("d1", ROOM, "{}", attempts=1, first_attempt_at=1_700_000_000), id="whole seconds"),
        pytest.param(Delivery("d1", ROOM, "{}", Kind.STICKER), id="a member of an enum"),
    ],
)
async def test_a_delivery_is_read_back_whatever_stands_for_its_numbers_and_texts(path: Path, one: Delivery) -> None:
    async with Store.open(path) as store:
        await store.settle([], "", [one])
        assert await store.due_deliveries() == [one]
    assert verify_database(path).problems == ()


async def test_a_sent_delivery_keeps_its_event_id_and_forgets_its_content(path: Path) -> None:
    async with Store.open(path) as store:
        await store.settle([], "", [delivery("d1", content="a private word")])
        await store.delivery_attempted("d1")
        await store.delivery_sent("d1", "$event")
        await store.delivery_dropped("d1", "late")
        await store.delivery_attempted("d1")
    assert look(path, "SELECT outcome, event_id, content, attempts FROM outbox") == [("sent", "$event", None, 1)]
    assert b"private" not in on_disk(path)


async def test_a_delivery_that_is_readdressed_is_a_new_one_in_the_other_room(path: Path) -> None:
    async with Store.open(path) as store:
        await store.settle([], "", [delivery("d1"), delivery("d2"), delivery("d3", OTHER_ROOM)])
        await store.delivery_attempted("d1")
        await store.delivery_readdressed("d1", OTHER_ROOM, "for there")
        there = delivery("d1", OTHER_ROOM, content="for there")
        assert await store.due_deliveries() == [there, delivery("d2")]
        await store.delivery_sent("d2", "$e")
        await store.delivery_readdressed("d2", OTHER_ROOM, "too late")
    async with Store.open(path) as store:
        assert await store.due_deliveries() == [there]
    assert verify_database(path).problems == ()


async def test_a_dropped_delivery_keeps_its_reason_and_makes_room_for_the_next(path: Path) -> None:
    async with Store.open(path) as store:
        await store.settle([], "", [delivery("d1"), delivery("d2")])
        with capture_logs() as logs:
            await store.delivery_dropped("d1", "M_FORBIDDEN")
        assert {"delivery": "d1", "reason": "M_FORBIDDEN"}.items() <= logs[-1].items()
        assert [one.delivery_id for one in await store.due_deliveries()] == ["d2"]
    assert look(path, "SELECT outcome FROM outbox ORDER BY position") == [("M_FORBIDDEN",), (None,)]
