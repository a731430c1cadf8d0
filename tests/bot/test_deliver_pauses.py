"""How deliveries wait when the homeserver or single rooms fail: gently, and nobody for whom it does not matter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bot import pace
from bot.deliver import MAX_PARALLEL_SENDS
from bot.matrix import RateLimited
from tests.bot.edge import ROOM, eventually, until
from tests.bot.posting import DOWN, OTHER, Post


@pytest.fixture
async def post(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Post]:
    async with Post.of(tmp_path / "musher.db", monkeypatch) as post:
        yield post


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

    async with asyncio.timeout(30), post.running():
        wanted, waits_s = 0, 0.0
        while waits_s < 5 * pace.FIRST_ROOM_PAUSE_S:
            wanted += 1
            await until(lambda wanted=wanted: tries() >= wanted)  # type: ignore[misc]
            await post.queue(f"{wanted}", room=OTHER)
            await until(lambda wanted=wanted: len(post.homeserver.texts(OTHER)) == wanted)  # type: ignore[misc]
            await until(lambda: post.pace.open)
            waits_s = post.deliveries._rooms._failing[ROOM].pause_s


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
        assert sum(post.deliveries._rooms.left(room) > 30 for room in rooms) >= 2


async def test_a_first_delivery_waits_while_another_room_fails_of_which_nothing_shows_that_it_fails_alone(
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
            # Whether it is failing can't be waited for: the room before it, once served, has it tried again at once.
            await until(lambda room=room: room in (sent.room_id for sent in post.homeserver.requests))  # type: ignore[misc]
            await post.queue(f"beside {room}", room=OTHER)
            await until(lambda room=room: f"beside {room}" in post.homeserver.texts(OTHER))  # type: ignore[misc]
    assert len(post.homeserver.requests) <= 3 * len(rooms), "each fails once and, when others are served, once more"


async def test_a_room_is_not_announced_that_will_have_to_wait(post: Post) -> None:
    post.deliveries.announce(ROOM)
    post.deliveries._rooms.failed(ROOM)
    post.deliveries.announce(ROOM)
    post.deliveries.announce(OTHER)
    post.deliveries._rooms.worked("!another")
    post.deliveries.announce(ROOM)
    post.deliveries.announce(OTHER)
    post.pace.failed(DOWN)
    post.deliveries.announce(OTHER)
    assert post.homeserver.announced == [ROOM, OTHER]
