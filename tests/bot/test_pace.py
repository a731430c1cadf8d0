from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import pairwise
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from bot.matrix import RateLimited, Unreachable
from bot.pace import AFTERMATH_S, LONGEST_PAUSE_S, PROBE_S, SHARE_S, Pace, RoomPauses

DOWN = Unreachable("https://example.org", "no connection")


class VirtualTime:
    """A clock that only moves when it is told to, and the sleep that goes with it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, sleeper))
        await sleeper

    @asynccontextmanager
    async def timeout(self, seconds: float | None) -> AsyncIterator[None]:
        async with asyncio.timeout(None) as limit:
            ends = asyncio.create_task(self._end(limit, seconds)) if seconds is not None else None
            try:
                yield
            finally:
                if ends is not None:
                    ends.cancel()

    async def _end(self, limit: asyncio.Timeout, seconds: float) -> None:
        await self.sleep(seconds)
        limit.reschedule(asyncio.get_running_loop().time())

    async def pass_by(self, seconds: float, step: float = 0.05) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += step
            due = [sleeper for until, sleeper in self._sleepers if until <= self.now and not sleeper.done()]
            self._sleepers = [each for each in self._sleepers if each[0] > self.now]
            for sleeper in due:
                sleeper.set_result(None)
            for _ in range(4):
                await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    clock = VirtualTime()
    monkeypatch.setattr("bot.pace.asyncio", SimpleNamespace(sleep=clock.sleep))
    return clock


@pytest.fixture
def pace(clock: VirtualTime) -> Pace:
    return Pace(clock, jitter=lambda: 1.0)


def limited(seconds: float) -> RateLimited:
    return RateLimited("https://example.org", seconds)


def pause_of(pace: Pace, clock: VirtualTime) -> float:
    return round(pace._pause_left(), 2)


async def test_without_a_failure_nobody_waits(pace: Pace) -> None:
    await asyncio.wait_for(pace.ready(), 30)


async def test_after_a_failure_one_goes_out_and_the_others_wait_until_that_has_worked(
    pace: Pace, clock: VirtualTime
) -> None:
    pace.failed(DOWN)
    assert not pace.open
    waiting = [asyncio.create_task(pace.ready()) for _ in range(3)]
    await clock.pass_by(0.9)
    assert not any(task.done() for task in waiting)
    await clock.pass_by(1)
    assert [task.done() for task in waiting].count(True) == 1
    pace.worked()
    await clock.pass_by(0.2)
    assert all(task.done() for task in waiting)
    assert pace.open


async def test_a_probe_that_fails_begins_the_next_pause(pace: Pace, clock: VirtualTime) -> None:
    pace.failed(DOWN)
    await clock_until(clock, pace.ready())
    pace.failed(DOWN)
    assert pause_of(pace, clock) == 2.0


async def test_a_probe_that_hangs_is_followed_by_another(pace: Pace, clock: VirtualTime) -> None:
    pace.failed(DOWN)
    await clock_until(clock, pace.ready())
    began = clock()
    await clock_until(clock, pace.ready())
    assert PROBE_S <= clock() - began < PROBE_S + 0.5


async def test_a_doubt_lets_one_through_at_once(pace: Pace, clock: VirtualTime) -> None:
    pace.doubted(DOWN)
    waiting = [asyncio.create_task(pace.ready()) for _ in range(3)]
    await clock.pass_by(0.1)
    assert [task.done() for task in waiting].count(True) == 1
    pace.worked()
    await clock.pass_by(0.2)
    assert all(task.done() for task in waiting)


async def test_in_silence_those_with_something_new_to_ask_wait_for_one_that_tries(
    pace: Pace, clock: VirtualTime
) -> None:
    with capture_logs() as logs:
        pace.silent()
        waiting = [asyncio.create_task(pace.ready()) for _ in range(3)]
        await clock.pass_by(0.1)
        assert [task.done() for task in waiting].count(True) == 1
        pace.silent()
        pace.worked()
        await clock.pass_by(0.2)
        assert all(task.done() for task in waiting)
    assert [line["event"] for line in logs if line["log_level"] != "debug"] == [
        "homeserver_pause",
        "homeserver_pause_over",
    ]


@pytest.mark.parametrize("fails", [Pace.doubted, Pace.failed], ids=["doubted", "failed"])
async def test_for_a_while_after_a_failure_what_can_wait_is_asked_a_little_later(
    pace: Pace, clock: VirtualTime, fails: Callable[[Pace, Exception], None]
) -> None:
    await pace.spare(clock.now, 1.0)
    fails(pace, DOWN)
    pace.worked()
    asked_at = clock.now
    waiting = asyncio.create_task(pace.spare(asked_at, 1.0))
    await clock.pass_by(0.9)
    assert not waiting.done()
    await clock.pass_by(0.2)
    await waiting
    await clock.pass_by(AFTERMATH_S)
    await pace.spare(clock.now, 1.0)


async def test_a_doubt_that_proves_right_is_a_failure(pace: Pace, clock: VirtualTime) -> None:
    pace.doubted(DOWN)
    await clock_until(clock, pace.ready())
    pace.doubted(DOWN)
    assert pause_of(pace, clock) == 1.0


async def test_an_answer_ends_a_pause_but_not_the_one_that_the_server_asked_for(pace: Pace, clock: VirtualTime) -> None:
    pace.failed(DOWN)
    pace.worked()
    assert pace.open
    pace.failed(limited(30))
    pace.worked()
    assert not pace.open
    assert pause_of(pace, clock) == 30


async def clock_until(clock: VirtualTime, waiting: Coroutine[None, None, None]) -> None:
    """Let time pass until somebody has waited enough."""
    task = asyncio.create_task(waiting)
    while not task.done():
        await clock.pass_by(0.05)


async def test_the_pause_grows_to_its_longest_and_starts_anew_after_an_answer(pace: Pace, clock: VirtualTime) -> None:
    pauses = []
    for _ in range(5):
        pace.failed(DOWN)
        pauses.append(pause_of(pace, clock))
        clock.now = pace._resume_at
    assert pauses == [1.0, 2.0, 4.0, 4.0, 4.0]
    pace.worked()
    pace.failed(DOWN)
    assert pause_of(pace, clock) == 1.0


async def test_jitter_shortens_a_pause_by_a_quarter_at_most(clock: VirtualTime) -> None:
    pace = Pace(clock, jitter=lambda: 0.0)
    pace.failed(DOWN)
    assert pause_of(pace, clock) == 0.75


async def test_failures_within_one_pause_count_once(pace: Pace, clock: VirtualTime) -> None:
    with capture_logs() as logs:
        for _ in range(5):
            pace.failed(DOWN)
    assert pause_of(pace, clock) == 1.0
    told = [(line["event"], line["reason"]) for line in logs if line["log_level"] != "debug"]
    assert told == [("homeserver_pause", "Unreachable")]
    clock.now = pace._resume_at
    pace.failed(DOWN)
    assert pause_of(pace, clock) == 2.0


async def test_the_server_gets_the_pause_that_it_asks_for(pace: Pace, clock: VirtualTime) -> None:
    pace.failed(limited(90))
    assert pause_of(pace, clock) == 90


async def test_the_server_can_prolong_a_pause_but_nobody_shortens_one(pace: Pace, clock: VirtualTime) -> None:
    pace.failed(DOWN)
    pace.failed(limited(30))
    assert pause_of(pace, clock) == 30
    pace.failed(limited(5))
    pace.failed(DOWN)
    assert pause_of(pace, clock) == 30


async def test_a_pause_that_grows_is_waited_for_to_its_end(pace: Pace, clock: VirtualTime) -> None:
    pace.failed(DOWN)
    waiting = asyncio.create_task(pace.ready())
    await clock.pass_by(0.5)
    pace.failed(limited(10))
    await clock.pass_by(9)
    assert not waiting.done()
    await clock.pass_by(1.1)
    assert waiting.done()


async def test_a_server_that_says_at_once_is_not_asked_in_a_hot_loop(pace: Pace, clock: VirtualTime) -> None:
    pauses = []
    for _ in range(4):
        pace.failed(limited(0))
        pauses.append(pause_of(pace, clock))
        clock.now = pace._resume_at
    assert pauses == [1.0, 2.0, 4.0, 4.0]


@pytest.mark.parametrize("error", [DOWN, limited(0), limited(0.05)])
async def test_two_loops_that_try_again_ask_less_than_twice_a_second(clock: VirtualTime, error: Exception) -> None:
    pace = Pace(clock, jitter=random.Random(7).random)
    asked: list[float] = []

    async def retry() -> None:
        while True:
            await pace.ready()
            asked.append(clock())
            await clock.sleep(0.02)
            pace.failed(error)

    loops = [asyncio.create_task(retry()) for _ in range(2)]
    minute = 60.0
    await clock.pass_by(minute)
    for loop in loops:
        loop.cancel()
    assert len(asked) < minute * 2 / 2
    gaps = [later - earlier for earlier, later in pairwise(asked[2:])]
    assert min(gaps) > 0.5
    assert max(gaps) < LONGEST_PAUSE_S + 1, "an answer has to come soon after the end of a fault"


# One room


@pytest.fixture
def rooms(clock: VirtualTime) -> RoomPauses:
    return RoomPauses(clock)


def test_a_room_that_never_failed_does_not_wait(rooms: RoomPauses) -> None:
    assert rooms.left("!good") <= 0
    assert not rooms.worked("!good")


def test_a_room_that_fails_while_others_are_served_waits_up_to_a_minute(rooms: RoomPauses, clock: VirtualTime) -> None:
    pauses = []
    for _ in range(9):
        pauses.append(rooms.failed("!bad"))
        clock.now += rooms.left("!bad")
        rooms.worked("!good")
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_a_room_of_which_nothing_shows_that_it_fails_alone_is_tried_often(
    rooms: RoomPauses, clock: VirtualTime
) -> None:
    pauses = []
    for _ in range(5):
        pauses.append(rooms.failed("!only"))
        clock.now += rooms.left("!only")
    assert pauses == [1.0, 2.0, 4.0, 4.0, 4.0]


async def test_a_minute_of_failing_rooms_costs_about_a_request_a_second(rooms: RoomPauses, clock: VirtualTime) -> None:
    began, asked = clock(), 0
    while clock() - began < 60:
        for n in range(20):
            if rooms.left(f"!{n}") <= 0:
                rooms.failed(f"!{n}")
                asked += 1
        clock.now += 0.1
    assert asked <= 20 + 60 / SHARE_S


def test_rooms_that_fail_at_one_moment_are_tried_at_moments_of_their_own(rooms: RoomPauses) -> None:
    waits = [rooms.failed(f"!{n}") for n in range(3)]
    assert waits == [1.0, 1.0 + SHARE_S, 1.0 + 2 * SHARE_S]


async def test_once_one_of_many_works_again_the_others_are_tried_at_once(rooms: RoomPauses, clock: VirtualTime) -> None:
    for n in range(20):
        rooms.failed(f"!{n}")
    waiting = asyncio.create_task(rooms.ready("!19"))
    await clock.pass_by(1)
    assert not waiting.done()
    assert rooms.worked("!0")
    await clock.pass_by(0.3)
    assert waiting.done()


async def test_while_a_room_fails_others_are_tried_at_moments_of_their_own_until_one_is_served(
    rooms: RoomPauses, clock: VirtualTime
) -> None:
    rooms.failed("!bad")
    waiting = [asyncio.create_task(rooms.ready(room)) for room in ("!one", "!other")]
    await clock.pass_by(SHARE_S)
    assert not any(task.done() for task in waiting)
    assert rooms.is_failing("!one")
    await clock.pass_by(1.3)
    assert [task.done() for task in waiting] == [True, False]
    assert not rooms.worked("!one"), "it had not failed"
    await clock.pass_by(0.3)
    assert waiting[1].done()
    assert rooms.left("!bad") <= 0
    await asyncio.wait_for(rooms.ready("!third"), 30)


async def test_a_room_whose_send_was_under_way_shows_the_others_that_one_fails_alone(
    rooms: RoomPauses, clock: VirtualTime
) -> None:
    rooms.failed("!bad")
    waiting = asyncio.create_task(rooms.ready("!other"))
    await clock.pass_by(0.3)
    assert not waiting.done()
    assert not rooms.worked("!good")
    await clock.pass_by(0.3)
    assert waiting.done()
    assert rooms.left("!bad") > 0
