from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from bot.health import Health


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_a_service_without_parts_has_nothing_to_wait_for() -> None:
    assert Health().ready()


def test_it_is_not_ready_until_every_part_has_said_ok() -> None:
    health = Health("store", "sync")
    health.register("model")
    assert not health.ready()
    health.ok("store")
    health.ok("sync")
    assert health.unready() == {"model": "has not reported yet"}
    health.ok("model")
    assert health.ready()


def test_one_failing_part_makes_it_unready_until_its_next_ok() -> None:
    health = Health("store", "sync")
    health.ok("store")
    health.ok("sync")
    health.failing("sync", "the homeserver is away")
    assert not health.ready()
    assert health.unready() == {"sync": "the homeserver is away"}
    health.ok("sync")
    assert health.ready()


def test_a_part_that_falls_silent_counts_as_failing() -> None:
    clock = Clock()
    health = Health("store", "sync", clock=clock)
    health.stale_after("sync", 60)
    health.ok("store")
    health.ok("sync")
    clock.now += 60
    assert health.ready()
    clock.now += 1
    assert not health.ready()
    assert health.unready() == {"sync": "silent for more than 60 s"}
    health.ok("sync")
    assert health.ready()


def test_registering_a_known_part_again_keeps_its_state() -> None:
    health = Health("sync")
    health.ok("sync")
    health.register("sync")
    assert health.ready()


def test_a_part_that_was_never_registered_is_an_error() -> None:
    health = Health("sync")
    with pytest.raises(KeyError):
        health.ok("synk")
    with pytest.raises(KeyError):
        health.failing("synk", "?")
    with pytest.raises(KeyError):
        health.stale_after("synk", 1)


def test_each_change_of_readiness_is_logged_once() -> None:
    clock = Clock()
    health = Health("sync", clock=clock)
    health.stale_after("sync", 10)
    with capture_logs() as logs:
        health.ready()
        for _ in range(3):
            health.ok("sync")
        for _ in range(3):
            health.failing("sync", "no route")
        health.ok("sync")
        clock.now += 11
        for _ in range(3):
            health.ready()
    assert logs == [
        {"event": "ready", "log_level": "info", "parts": ["sync"]},
        {"event": "not_ready", "log_level": "warning", "reasons": {"sync": "no route"}},
        {"event": "ready", "log_level": "info", "parts": ["sync"]},
        {"event": "not_ready", "log_level": "warning", "reasons": {"sync": "silent for more than 10 s"}},
    ]
