from __future__ import annotations

from datetime import datetime, timedelta

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


def test_a_part_that_is_not_required_is_shown_but_stands_in_nobodys_way() -> None:
    health = Health("sync")
    health.register("model", required=False)
    health.ok("sync")
    health.failing("model", "overloaded")
    assert health.ready()
    assert health.states()["model"].state == "failing"
    assert not health.states()["model"].required


def test_a_fault_shorter_than_a_parts_patience_does_not_make_it_unready() -> None:
    clock = Clock()
    health = Health(clock=clock)
    health.register("sync", patience_s=15)
    health.failing("sync", "not yet")
    assert not health.ready(), "it was never well"
    health.ok("sync")
    for _ in range(15):
        health.failing("sync", "no route")
        assert health.ready()
        clock.now += 1
    assert not health.ready()
    health.ok("sync")
    assert health.ready()


def test_a_second_part_that_fails_is_logged_though_the_first_still_does() -> None:
    health = Health("sync", "store")
    health.ok("sync")
    health.ok("store")
    with capture_logs() as logs:
        health.failing("sync", "no route")
        health.failing("store", "full")
        for _ in range(5):
            health.ok("sync")
            health.failing("sync", "no route")
        health.ok("sync")
        health.ok("store")
    assert [(line["event"], sorted(line.get("reasons", ()))) for line in logs] == [
        ("not_ready", ["sync"]),
        ("not_ready", ["store", "sync"]),
        ("ready", []),
    ]


def test_a_parts_state_tells_since_when_and_its_last_error() -> None:
    clock = Clock()
    health = Health("sync", clock=clock)
    assert health.states()["sync"].state == "starting"
    assert health.age_s("sync") == 0
    health.ok("sync")
    clock.now += 60
    health.ok("sync")
    well = health.states()["sync"]
    clock.now += 60
    for _ in range(3):
        health.failing("sync", "no route")
    failing = health.states()["sync"]
    assert (well.state, well.last_error, well.last_error_at, well.failures) == ("ok", None, None, 0)
    assert (failing.state, failing.last_error, failing.failures) == ("failing", "no route", 3)
    since = datetime.fromisoformat(failing.since) - datetime.fromisoformat(well.since)
    assert timedelta(seconds=59) <= since <= timedelta(seconds=61)
    assert health.age_s("sync") == 60


def test_a_part_that_fell_silent_says_so_in_its_state() -> None:
    clock = Clock()
    health = Health("sync", clock=clock)
    health.stale_after("sync", 60)
    health.ok("sync")
    clock.now += 61
    assert health.states()["sync"].state == "silent"
