from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from bot.matrix import RateLimited, Unreachable
from bot.pace import LONGEST_PAUSE_S, Pace

DOWN = Unreachable("https://example.org", "no connection")


class VirtualTime:
    """A clock that only moves when it is told to, and the sleep that goes with it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:  # noqa: ASYNC110 - the time is virtual
            await asyncio.sleep(0)

    async def pass_by(self, seconds: float, step: float = 0.05) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += step
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
    return round(pace._resume_at - clock(), 2)


async def test_without_a_failure_nobody_waits(pace: Pace) -> None:
    await asyncio.wait_for(pace.ready(), 1)


async def test_a_failure_makes_everybody_wait(pace: Pace, clock: VirtualTime) -> None:
    pace.failed(DOWN)
    waiting = [asyncio.create_task(pace.ready()) for _ in range(3)]
    await clock.pass_by(0.9)
    assert not any(task.done() for task in waiting)
    await clock.pass_by(0.2)
    assert all(task.done() for task in waiting)


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
    assert [(line["event"], line["reason"]) for line in logs] == [("homeserver_pause", "Unreachable")]
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
    gaps = [later - earlier for earlier, later in zip(asked, asked[2:], strict=False)]
    assert min(gaps) > 0.5
    assert max(gaps) < LONGEST_PAUSE_S + 1, "an answer has to come soon after the end of a fault"
