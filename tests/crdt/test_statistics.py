from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from crdt import Store, StoreClosed, StoreFull
from crdt.statistics import Queue, _counts
from tests.crdt.samples import OTHER_ROOM, delivery, events, message


async def test_an_empty_store_has_nothing_waiting(store: Store) -> None:
    found = await store.statistics()
    assert (found.inbox, found.context, found.outbox, found.in_doubt) == (Queue(0, 0.0), 0, Queue(0, 0.0), 0)
    assert (found.head, found.events, found.segments, found.sessions) == (0, 0, 0, 0)
    assert found.failure is None
    assert found.database_bytes > 0
    assert found.free_bytes > 0


async def test_what_waits_is_counted_with_the_age_of_the_oldest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    long_ago = time.time_ns() - 100 * 10**9
    with monkeypatch.context() as past:
        past.setattr(time, "time_ns", lambda: long_ago)
        await store.admit([message("$1"), message("$2", context=True)])
        await store.settle([], "queued", [delivery("d1")])
    await store.admit([message("$3", session_id=OTHER_ROOM)])
    await store.settle([], "queued", [delivery("d2"), delivery("d3", OTHER_ROOM)])
    await store.delivery_attempted("d1")
    found = await store.statistics()
    assert (found.inbox.waiting, found.context, found.outbox.waiting, found.in_doubt) == (2, 1, 3, 1)
    assert 100 <= found.inbox.oldest_s < 110
    assert 100 <= found.outbox.oldest_s < 110


async def test_what_is_settled_or_sent_waits_no_more(store: Store) -> None:
    await store.admit([message("$1")])
    await store.settle(["$1"], "redacted", [delivery("d1")])
    await store.delivery_sent("d1", "$event")
    found = await store.statistics()
    assert (found.inbox, found.outbox) == (Queue(0, 0.0), Queue(0, 0.0))


async def test_a_clock_that_was_set_back_makes_nothing_younger_than_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.admit([message("$1")])
    an_hour_ago = time.time_ns() - 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: an_hour_ago)
    assert (await store.statistics()).inbox == Queue(1, 0.0)


async def test_the_log_is_measured_as_it_is_kept(path: Path) -> None:
    async with Store.open(path, segment_events=10, retention_events=10) as store:
        before = (await store.statistics()).commits
        await store.append_events(events(1, 35))
        await store.housekeep()
        found = await store.statistics()
        kept = await store.read_events()
    assert found.commits > before
    assert (found.head, found.events) == (35, len(kept))
    assert found.segments == 2
    assert found.wal_bytes > 0


async def test_a_commit_that_fails_is_told_until_one_works(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    database = store._database
    transact = database._transact

    def full(*_arguments: Any) -> int:
        raise StoreFull(str(store.path))

    monkeypatch.setattr(database, "_transact", full)
    with pytest.raises(StoreFull):
        await store.append_events(events(1, 1))
    assert "disk is full" in ((await store.statistics()).failure or "")
    monkeypatch.setattr(database, "_transact", transact)
    await store.append_events(events(1, 1))
    assert (await store.statistics()).failure is None


async def test_no_query_looks_at_what_is_settled(store: Store) -> None:
    """The cost must not grow with the months that the service has run."""
    plans: list[str] = []

    class Explaining:
        def __init__(self, connection: Any) -> None:
            self._connection = connection

        def execute(self, query: str, arguments: Any = ()) -> Any:
            plans.extend(row[3] for row in self._connection.execute(f"EXPLAIN QUERY PLAN {query}", arguments))
            return self._connection.execute(query, arguments)

    await store._database.read(lambda connection: _counts(Explaining(connection)))  # type: ignore[arg-type]
    touched = [plan for plan in plans if "inbox" in plan or "outbox" in plan]
    assert len(touched) == 4
    assert all("USING INDEX" in plan or "USING COVERING INDEX" in plan for plan in touched), touched


async def test_a_closed_store_has_no_statistics(path: Path) -> None:
    async with Store.open(path) as store:
        pass
    with pytest.raises(StoreClosed):
        await store.statistics()
