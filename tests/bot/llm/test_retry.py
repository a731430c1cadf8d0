"""Retries help where they can, and end."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from bot.llm.port import FailureKind, ModelFailed, Reply
from bot.llm.retry import Patience, persist


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def patience(self, total_seconds: float = 1000.0) -> Patience:
        return Patience(total_seconds, sleep=self.sleep, chance=lambda: 1.0, clock=lambda: self.now)


class Flaky:
    """Fails as told, then replies."""

    def __init__(self, *failures: ModelFailed) -> None:
        self.failures = list(failures)
        self.calls = 0

    async def __call__(self) -> Reply:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return Reply("at last")


def _passing(kind: FailureKind = "server_error", retry_after: float | None = None) -> ModelFailed:
    return ModelFailed(kind, "it failed", retry_after=retry_after, transient=True)


async def test_what_passes_is_tried_again_with_growing_delays() -> None:
    clock, flaky = Clock(), Flaky(_passing(), _passing("timeout"))
    with capture_logs() as logs:
        assert await persist(flaky, clock.patience()) == Reply("at last")
    assert clock.slept == [1.0, 2.0]
    assert [(entry["event"], entry["kind"], entry["attempt"]) for entry in logs] == [
        ("model_retry", "server_error", 1),
        ("model_retry", "timeout", 2),
    ]


async def test_the_third_failure_is_final() -> None:
    clock, flaky = Clock(), Flaky(*(_passing() for _ in range(5)))
    with pytest.raises(ModelFailed):
        await persist(flaky, clock.patience())
    assert flaky.calls == 3


async def test_what_does_not_pass_is_not_tried_again() -> None:
    clock, flaky = Clock(), Flaky(ModelFailed("unauthorised", "wrong key"))
    with pytest.raises(ModelFailed):
        await persist(flaky, clock.patience())
    assert (flaky.calls, clock.slept) == (1, [])


async def test_a_server_is_given_the_time_that_it_asks_for() -> None:
    clock, flaky = Clock(), Flaky(_passing("rate_limited", retry_after=7.0))
    await persist(flaky, clock.patience())
    assert clock.slept == [8.0]


async def test_a_server_that_asks_for_an_hour_is_not_waited_for() -> None:
    clock, flaky = Clock(), Flaky(_passing("rate_limited", retry_after=3600.0))
    with pytest.raises(ModelFailed) as failed:
        await persist(flaky, clock.patience(total_seconds=10_000))
    assert (failed.value.retry_after, clock.slept) == (3600.0, [])


async def test_no_attempt_begins_after_the_total_time() -> None:
    clock, flaky = Clock(), Flaky(_passing(), _passing())
    with pytest.raises(ModelFailed):
        await persist(flaky, clock.patience(total_seconds=2.5))
    assert flaky.calls == 2


@pytest.mark.parametrize(("chance", "delay"), [(0.0, 0.5), (0.999, 0.9995)])
def test_delays_differ_by_chance(chance: float, delay: float) -> None:
    assert Patience(10, chance=lambda: chance).delay(1, None) == pytest.approx(delay)
