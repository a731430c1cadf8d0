from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from bot.trouble import QUIET_S, REMIND_EVERY_S, Trouble


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def trouble(clock: Clock) -> Trouble:
    return Trouble("sync_failed", level="error", clock=clock)


def told(logs: list[MutableMapping[str, Any]]) -> list[str]:
    return [line["event"] for line in logs if line["log_level"] != "debug"]


def test_a_thousand_repetitions_are_two_lines(trouble: Trouble) -> None:
    with capture_logs() as logs:
        for _ in range(1000):
            trouble.met("no route", attempt=1)
        for _ in range(1000):
            trouble.over()
    assert told(logs) == ["sync_failed", "sync_failed_over"]
    assert logs[0] == {"event": "sync_failed", "log_level": "error", "reason": "no route", "attempt": 1}
    assert logs[-1]["repeated"] == 999


def test_one_that_lasts_is_told_of_again_from_time_to_time(trouble: Trouble, clock: Clock) -> None:
    with capture_logs() as logs:
        for _ in range(3600):
            trouble.met("no route")
            clock.now += 1
    assert len(told(logs)) == 3600 / REMIND_EVERY_S
    assert sum(line.get("times", 1) for line in logs if line["log_level"] == "error") == 3600 - REMIND_EVERY_S + 1


def test_one_that_comes_and_goes_is_not_told_of_each_time(trouble: Trouble, clock: Clock) -> None:
    with capture_logs() as logs:
        for _ in range(600):
            trouble.met("HTTP status 500")
            trouble.over()
            clock.now += 1
    assert len(told(logs)) == 2 * 600 / QUIET_S


def test_what_never_happened_has_no_end(trouble: Trouble) -> None:
    with capture_logs() as logs:
        trouble.over()
    assert logs == []
