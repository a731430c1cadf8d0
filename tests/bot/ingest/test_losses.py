from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bot.health import Health
from bot.ingest import IngestServer
from bot.ingest import server as server_module
from bot.ingest.losses import Losses
from bot.ingest.places import MAX_BODIES_IN_FLIGHT
from bot.ingest.source import Source
from crdt import GAP_PIPELINE_EVENT, Appended, EventBatch, PipelineEvent, Store, StoreFull
from tests.bot.ingest.raw_http import connect, head
from tests.bot.ingest.senders import deliver, github, hexmac, source

START = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
BODY = json.dumps({"action": "opened", "issue": {"number": 5}, "repository": {"full_name": "octo/hello"}}).encode()


def seconds() -> Callable[[], datetime]:
    passed: Iterator[int] = iter(range(10_000))
    return lambda: START + timedelta(seconds=next(passed))


class Log:
    """A log that takes sentinels, or does not."""

    def __init__(self) -> None:
        self.full = False
        self.refused = 0
        self.taken: list[PipelineEvent] = []
        self.changed = asyncio.Condition()

    async def append(self, sentinel: PipelineEvent) -> int:
        async with self.changed:
            self.changed.notify_all()
            if self.full:
                self.refused += 1
                raise StoreFull("musher.db")
            self.taken.append(sentinel)
            return len(self.taken)

    async def until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(30), self.changed:
            await self.changed.wait_for(happened)


def losses(log: Log, coalesce_s: float = 0.0) -> Losses:
    return Losses(log.append, clock=seconds(), retry_s=0.001, coalesce_s=coalesce_s)


async def test_a_loss_becomes_a_gap_between_utc_times() -> None:
    log = Log()
    async with losses(log) as noting:
        noting.note("gh", "overloaded")
        await log.until(lambda: bool(log.taken))
    assert log.taken == [PipelineEvent("", "2026-01-31T09:30:00Z", "2026-01-31T09:30:00Z", GAP_PIPELINE_EVENT)]


async def test_the_gap_begins_when_the_delivery_came() -> None:
    log = Log()
    async with losses(log) as noting:
        noting.note("gh", "storage_full", waited_s=8.0)
        await log.until(lambda: bool(log.taken))
    assert (log.taken[0].from_stage[-9:], log.taken[0].to_stage[-9:]) == ("09:29:52Z", "09:30:00Z")


async def test_losses_while_the_log_takes_nothing_are_one_gap_as_soon_as_it_does() -> None:
    log = Log()
    log.full = True
    async with losses(log, coalesce_s=3600) as noting:
        for _ in range(3):
            noting.note("gh", "storage_full")
        await log.until(lambda: log.refused > 2)
        noting.note("gh", "storage_full")
        log.full = False
        await log.until(lambda: bool(log.taken))
        noting.note("gh", "overloaded")
        noting.note("gh", "overloaded")
        assert len(log.taken) == 1
    spans = [(sentinel.from_stage[-6:], sentinel.to_stage[-6:]) for sentinel in log.taken]
    assert spans == [("30:00Z", "30:03Z"), ("30:04Z", "30:05Z")]


async def test_a_stop_that_can_not_record_them_says_so() -> None:
    log = Log()
    log.full = True
    with capture_logs() as logs:
        async with losses(log) as noting:
            noting.note("gh", "storage_full")
    assert logs[-1]["event"] == "losses_unrecorded"
    assert (logs[-1]["count"], logs[-1]["first"]) == (1, "2026-01-31T09:30:00Z")


class FaultyDisk:
    """The store, behind a disk that is full until it is not."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.full = True
        self.refused = asyncio.Event()

    async def append(self, batches: Sequence[EventBatch]) -> Sequence[Appended]:
        self._refuse()
        return await self.store.append_batches(batches)

    async def append_gap(self, sentinel: PipelineEvent) -> int:
        self._refuse()
        return await self.store.append_event(sentinel)

    def _refuse(self) -> None:
        if self.full:
            self.refused.set()
            raise StoreFull("musher.db")


def serving(disk: FaultyDisk, taken_by: Source) -> IngestServer:
    return IngestServer(disk.append, [], "127.0.0.1", 0, Health(), sources=[taken_by], append_gap=disk.append_gap)


def impatient(kind: str) -> Source:
    taken_by = source(kind)
    taken_by._kind = dataclasses.replace(taken_by._kind, patience_s=0.01)
    return taken_by


async def test_what_github_will_not_send_again_is_a_gap_that_sessions_see_once(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "musher.db") as store:
        disk = FaultyDisk(store)
        async with serving(disk, impatient("github")) as server:
            answer = await deliver(server.port, "github", BODY, github("issues", BODY))
            assert (answer.status, answer.error["code"]) == (503, "storage_full")
            disk.full = False
        (line,) = await store.assemble_and_advance_session("!room")
        assert line.startswith("events between 20")
        assert line.endswith("Z were dropped")
        assert await store.assemble_and_advance_session("!room") == []


async def test_github_is_taken_when_the_log_recovers_in_time_and_nothing_is_lost(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "musher.db") as store:
        disk = FaultyDisk(store)
        async with serving(disk, source("github")) as server:
            delivery = asyncio.create_task(deliver(server.port, "github", BODY, github("issues", BODY)))
            await asyncio.wait_for(disk.refused.wait(), 30)
            disk.full = False
            assert (await delivery).json["accepted"] == 1
        assert [event.story_id for event in await store.read_events()] == ["octo/hello#5"]


async def test_a_sender_that_retries_loses_nothing_by_a_full_disk(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "musher.db") as store:
        disk = FaultyDisk(store)
        async with serving(disk, source("jira")) as server:
            body = b'{"webhookEvent": "jira:issue_created", "issue": {"key": "SLED-7"}}'
            headers = {"X-Hub-Signature": "sha256=" + hexmac("it's a secret to everybody", body)}
            answer = await deliver(server.port, "jira", body, headers)
            assert (answer.status, answer.headers["retry-after"]) == (503, "60")
            disk.full = False
            assert (await deliver(server.port, "jira", body, headers)).json["accepted"] == 1
        assert [event.story_id for event in await store.read_events()] == ["SLED-7"]


async def test_a_fault_of_ours_in_a_delivery_that_will_not_come_again_is_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    taken_by = source("github")
    monkeypatch.setattr(taken_by, "map", fail)
    async with Store.open(tmp_path / "musher.db") as store:
        async with IngestServer(
            store.append_batches, [], "127.0.0.1", 0, Health(), sources=[taken_by], append_gap=store.append_event
        ) as server:
            assert (await deliver(server.port, "github", BODY, github("issues", BODY))).status == 500
        (line,) = await store.assemble_and_advance_session("!room")
        assert line.startswith("events between ")


async def test_without_a_log_for_gaps_a_loss_is_logged() -> None:
    async def refuse(_: Sequence[EventBatch]) -> Sequence[Appended]:
        raise StoreFull("musher.db")

    with capture_logs() as logs:
        async with IngestServer(refuse, [], "127.0.0.1", 0, Health(), sources=[impatient("github")]) as server:
            assert (await deliver(server.port, "github", BODY, github("issues", BODY))).status == 503
    assert {"delivery_lost", "gap_not_stored"} <= {line["event"] for line in logs}


async def test_a_forged_delivery_is_no_loss(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "musher.db") as store:
        disk = FaultyDisk(store)
        with capture_logs() as logs:
            async with serving(disk, impatient("github")) as server:
                assert (await deliver(server.port, "github", BODY, github("issues", BODY, "forged"))).status == 401
        assert "delivery_lost" not in [line["event"] for line in logs]


async def test_what_a_stranger_can_not_prove_is_no_loss_though_nobody_reads_it(tmp_path: Path) -> None:
    liar = {"X-Hub-Signature-256": "sha256=" + "0" * 64, "Content_Length": "9", "Authorization": None}
    async with Store.open(tmp_path / "musher.db") as store:
        with capture_logs() as logs:
            async with (
                IngestServer(
                    store.append_batches,
                    *([], "127.0.0.1", 0, Health()),
                    sources=[impatient("github")],
                    append_gap=store.append_event,
                ) as server,
                AsyncExitStack() as stack,
            ):
                for _ in range(MAX_BODIES_IN_FLIGHT):
                    held = await stack.enter_async_context(connect(server.port))
                    await held.send(head("/v1/hooks/github", **liar, Expect="100-continue"))
                    assert (await held.answer()).status == 100
                assert (await deliver(server.port, "github", BODY, github("issues", BODY))).status == 503
        events = [line["event"] for line in logs]
        assert ("delivery_unread" in events, "delivery_lost" in events) == (True, False)
        assert await store.read_events() == []


async def test_a_delivery_that_waits_for_a_full_disk_at_the_stop_is_a_gap(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "musher.db") as store:
        disk = FaultyDisk(store)
        async with IngestServer(
            disk.append, [], "127.0.0.1", 0, Health(), sources=[source("github")], append_gap=store.append_event
        ) as server:
            delivery = asyncio.create_task(deliver(server.port, "github", BODY, github("issues", BODY)))
            await asyncio.wait_for(disk.refused.wait(), 30)
        assert (await delivery).error["code"] == "storage_full"
        (line,) = await store.assemble_and_advance_session("!room")
        assert line.startswith("events between ")


async def test_a_stop_says_which_delivery_a_disk_that_hangs_leaves_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = asyncio.Event()

    async def hang(_: Sequence[EventBatch]) -> Sequence[Appended]:
        hanging.set()
        await asyncio.Event().wait()
        return ()

    monkeypatch.setattr(server_module, "_STOP_SECONDS", 0.05)
    with capture_logs() as logs:
        async with IngestServer(hang, [], "127.0.0.1", 0, Health(), sources=[source("github")]) as server:
            delivery = asyncio.create_task(deliver(server.port, "github", BODY, github("issues", BODY)))
            await asyncio.wait_for(hanging.wait(), 30)
        await asyncio.wait([delivery], timeout=30)
        with pytest.raises(asyncio.IncompleteReadError):
            delivery.result()
    assert [line["source"] for line in logs if line["event"] == "delivery_in_doubt"] == ["github"]


async def test_a_clock_that_is_set_back_does_not_shorten_a_gap() -> None:
    log = Log()
    log.full = True
    times = iter([START + timedelta(minutes=30), START])
    async with Losses(log.append, clock=lambda: next(times), retry_s=0.001, coalesce_s=0.0) as noting:
        noting.note("gh", "overloaded")
        noting.note("gh", "overloaded")
        log.full = False
        await log.until(lambda: bool(log.taken))
    (gap,) = log.taken
    assert (gap.from_stage, gap.to_stage) == ("2026-01-31T09:30:00Z", "2026-01-31T10:00:00Z")
