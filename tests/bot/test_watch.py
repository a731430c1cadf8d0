from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bot import watch as module
from bot.health import Health
from bot.watch import MIN_FREE_BYTES, OUTBOX_PATIENCE_S, Watch
from crdt import CrdtError, Statistics, Store, StoreDamaged, StoreUnavailable
from crdt.statistics import Queue
from tests.bot.edge import Disk, until


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Shown:
    """A store whose statistics are what the test says."""

    def __init__(self, statistics: Statistics) -> None:
        self.statistics_now: Statistics | Exception = statistics
        self.writes: list[Exception | None] = []

    async def statistics(self) -> Statistics:
        if isinstance(self.statistics_now, Exception):
            raise self.statistics_now
        return self.statistics_now

    async def write_settings(self, values: object) -> None:
        error = self.writes.pop(0)
        if error is not None:
            raise error


@pytest.fixture
async def calm(tmp_path: Path) -> AsyncIterator[Statistics]:
    """The statistics of a store where all is well."""
    async with Store.open(tmp_path / "calm.db") as store:
        yield await store.statistics()


async def test_a_store_where_all_is_well_makes_both_parts_ready(tmp_path: Path) -> None:
    health = Health()
    async with Store.open(tmp_path / "musher.db") as store:
        watch = Watch(store, health)
        assert set(health.unready()) == {"outbox", "store"}
        await watch.look()
    assert health.ready()


async def test_an_outbox_that_does_not_drain_makes_it_unready_until_it_does(calm: Statistics) -> None:
    clock, health = Clock(), Health()
    store = Shown(calm)
    watch = Watch(store, health, clock)
    clock.now += 2 * OUTBOX_PATIENCE_S
    store.statistics_now = replace(calm, outbox=Queue(3, OUTBOX_PATIENCE_S - 1))
    await watch.look()
    assert health.ready()
    store.statistics_now = replace(calm, outbox=Queue(3, OUTBOX_PATIENCE_S + 1))
    with capture_logs() as logs:
        for _ in range(100):
            await watch.look()
    assert "3 deliveries" in health.unready()["outbox"]
    assert [line["event"] for line in logs] == ["not_ready"]
    store.statistics_now = calm
    await watch.look()
    assert health.ready()


async def test_what_a_downtime_left_in_the_outbox_is_given_its_time_first(calm: Statistics) -> None:
    clock, health = Clock(), Health()
    watch = Watch(Shown(replace(calm, outbox=Queue(3, 86_400.0))), health, clock)
    await watch.look()
    assert health.ready()
    clock.now += OUTBOX_PATIENCE_S + 1
    await watch.look()
    assert not health.ready()


async def test_a_disk_that_is_full_makes_it_unready_until_there_is_room(calm: Statistics) -> None:
    health = Health()
    store = Shown(replace(calm, free_bytes=MIN_FREE_BYTES - 1))
    watch = Watch(store, health)
    await watch.look()
    assert "make room" in health.unready()["store"]
    store.statistics_now = calm
    await watch.look()
    assert health.ready()


async def test_after_a_commit_that_failed_it_is_found_out_whether_the_next_would(tmp_path: Path) -> None:
    """There may be no other work: a /readyz of 503 keeps senders away."""
    health = Health()
    async with Store.open(tmp_path / "musher.db") as store:
        watch, disk = Watch(store, health), Disk(store)
        store._database.failure = "the disk is full"
        disk.full_for = 2
        with capture_logs() as logs:
            await watch.look()
            await watch.look()
            assert "can't grow, the disk is full" in health.unready()["store"]
            await watch.look()
        assert health.ready()
        assert [line["event"] for line in logs if line["event"].endswith("ready")] == ["not_ready", "ready"]
        assert (await store.statistics()).failure is None


@pytest.mark.parametrize(
    "error", [StoreUnavailable("musher.db", "failed (I/O error)", "look"), StoreDamaged("musher.db", "I/O error")]
)
async def test_a_store_that_can_not_be_read_is_failing(calm: Statistics, error: CrdtError) -> None:
    health = Health()
    store = Shown(calm)
    watch = Watch(store, health)
    await watch.look()
    store.statistics_now = error
    await watch.look()
    assert "I/O error" in health.unready()["store"]
    store.statistics_now = replace(calm, failure="I/O error")
    store.writes = [error]
    await watch.look()
    assert "I/O error" in health.unready()["store"]


async def test_a_part_that_falls_silent_is_told_of_though_nobody_asks(calm: Statistics) -> None:
    clock = Clock()
    health = Health("sync", clock=clock)
    health.stale_after("sync", 90)
    watch = Watch(Shown(calm), health)
    health.ok("sync")
    await watch.look()
    clock.now += 91
    with capture_logs() as logs:
        await watch.look()
    assert logs == [
        {"event": "not_ready", "log_level": "warning", "reasons": {"sync": "silent for more than 90 s"}},
    ]


async def test_it_goes_on_looking(calm: Statistics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.001)
    health = Health()
    store = Shown(replace(calm, free_bytes=0))
    task = asyncio.create_task(Watch(store, health).run())
    await until(lambda: health.states()["store"].failures > 3)
    store.statistics_now = calm
    await until(health.ready)
    task.cancel()
    await asyncio.wait({task})


async def test_the_room_that_is_told_is_that_of_the_databases_own_disk(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "musher.db") as store:
        found = await store.statistics()
    filesystem = os.statvfs(tmp_path)
    assert found.free_bytes == pytest.approx(filesystem.f_bavail * filesystem.f_frsize, rel=0.05)
