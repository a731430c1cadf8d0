"""The event log: seqs, segments, dedupe keys, and what happens to appends that go wrong."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

import crdt.database
import crdt.event_log
from crdt import (
    GAP_PIPELINE_EVENT,
    Appended,
    EventBatch,
    InvalidEvent,
    PipelineEvent,
    Store,
    StoreFull,
    StoreUnavailable,
    verify_database,
)
from crdt.documents import Document, insert_ops
from crdt.log_entries import RecentEvents
from crdt.schema import checksum
from crdt.segments import Retention
from tests.crdt.breakage import fail_after_commit, fill_disk, free_disk
from tests.crdt.samples import ROOM, alter, event, events, go_back_to_the_fourth_schema, lines, look, told


async def test_seqs_start_at_one_and_have_no_holes(store: Store) -> None:
    assert await store.append_event(event(1)) == 1
    assert await store.append_events(events(2, 4)) == [2, 3, 4]
    assert await store.append_event(event(5)) == 5
    assert [one.event_seq for one in await store.read_events()] == [1, 2, 3, 4, 5]


async def test_an_event_is_recorded_as_it_came_and_stamped_with_its_sled(store: Store) -> None:
    before = datetime.now(UTC)
    await store.append_event(PipelineEvent("42", "", "3_qa", "Merged 🎉", "2026-01-31T10:30:00+01:00"))
    (recorded,) = await store.read_events()
    assert (recorded.sled_id, recorded.event_seq, recorded.story_id) == ("build-1", 1, "42")
    assert (recorded.from_stage, recorded.to_stage, recorded.pipeline_event) == ("", "3_qa", "Merged 🎉")
    assert recorded.occurred_at == "2026-01-31T10:30:00+01:00"
    assert recorded.recorded_at.endswith("Z")
    age = datetime.fromisoformat(recorded.recorded_at) - before
    assert -0.01 < age.total_seconds() < 60


async def test_events_are_read_after_a_seq_up_to_a_limit(store: Store) -> None:
    await store.append_events(events(1, 20))
    assert [one.event_seq for one in await store.read_events(after=7, limit=3)] == [8, 9, 10]
    assert [one.event_seq for one in await store.read_events(after=18)] == [19, 20]
    assert await store.read_events(after=20) == []
    assert await store.read_events(after=10**9) == []
    assert await store.read_events(limit=0) == []
    assert [one.event_seq for one in await store.read_events(after=-5, limit=2)] == [1, 2]


async def test_segments_roll_in_the_middle_of_a_batch(path: Path) -> None:
    async with Store.open(path, sled_id="build-1", segment_events=4) as store:
        assert await store.append_events(events(1, 3)) == [1, 2, 3]
        assert await store.append_events(events(4, 14)) == list(range(4, 15))
        assert told(await store.assemble_and_advance_session(ROOM)) == list(range(1, 15))
    assert look(path, "SELECT segment, first_seq, events FROM segments") == [
        (1, 1, 4),
        (2, 5, 4),
        (3, 9, 4),
        (4, 13, 2),
    ]
    async with Store.open(path, segment_events=4) as store:
        assert await store.append_events(events(15, 16)) == [15, 16]
        recorded = await store.read_events()
        assert [(one.event_seq, one.story_id) for one in recorded] == [(n, str(n)) for n in range(1, 17)]


@pytest.mark.parametrize("segment_events", [1, 3, 25, 1000])
async def test_another_segment_size_after_reopening_goes_on_where_the_log_ended(
    path: Path, segment_events: int
) -> None:
    async with Store.open(path, segment_events=7) as store:
        await store.append_events(events(1, 17))
    async with Store.open(path, segment_events=segment_events) as store:
        assert await store.append_events(events(18, 40)) == list(range(18, 41))
    async with Store.open(path, segment_events=5) as store:
        assert await store.append_event(event(41)) == 41
        assert [one.story_id for one in await store.read_events()] == [str(n) for n in range(1, 42)]


async def test_a_sealed_segment_grows_again_when_segments_become_larger(path: Path) -> None:
    """The row of a segment lags behind its document while it grows; this one was full before."""
    for segment_events in (4, 9, 9):
        async with Store.open(path, segment_events=segment_events) as store:
            head = (await store.statistics()).head
            await store.append_events(events(head + 1, head + 4))
            assert [one.event_seq for one in await store.read_events()] == list(range(1, head + 5))
    assert verify_database(path).problems == ()


async def test_a_log_from_before_rows_lagged_behind_goes_on_where_it_ended(path: Path) -> None:
    async with Store.open(path, sled_id="build-1", segment_events=5) as store:
        await store.append_events(events(1, 8))
    alter(path, "UPDATE segments SET events = 3, checksum = ? WHERE segment = 2", checksum("build-1", 2, 6, 3, None))
    go_back_to_the_fourth_schema(path)
    alter(path, "PRAGMA user_version = 3")
    async with Store.open(path, segment_events=5) as store:
        assert await store.append_events(events(9, 12)) == [9, 10, 11, 12]
    assert verify_database(path).problems == ()


async def test_a_segment_that_smaller_segments_cut_short_is_dropped_by_retention_like_others(path: Path) -> None:
    async with Store.open(path, segment_events=100) as store:
        await store.append_events(events(1, 10))
    async with Store.open(path, segment_events=4, retention_events=5) as store:
        await store.append_events(events(11, 30))
        await store.housekeep()
        assert (await store.read_events())[0].event_seq == 23


async def test_a_batch_of_several_transactions_is_one_commit(path: Path) -> None:
    async with Store.open(path, segment_events=130) as store:
        ((before,),) = look(path, "SELECT commits FROM state")
        await store.append_events(events(1, 350))
        assert store._database.commits == before + 1
    async with Store.open(path) as store:
        assert told(await store.assemble_and_advance_session(ROOM)) == list(range(1, 351))


async def test_appending_nothing_writes_nothing(path: Path) -> None:
    async with Store.open(path) as store:
        assert await store.append_events([]) == []
        assert await store.append_batches([]) == []
        assert await store.append_batches([EventBatch(())]) == [Appended(())]
        assert await store.append_event(event()) == 1


async def test_one_refused_event_refuses_the_whole_batch_and_is_named(store: Store) -> None:
    with pytest.raises(InvalidEvent) as caught:
        await store.append_events([event(1), event(2), event(3), event(story_id="")])
    assert caught.value.field == "[3].story_id"
    with pytest.raises(InvalidEvent) as caught:
        await store.append_batches([EventBatch((event(1),)), EventBatch((event(2), event(3, to_stage="a\nb")))])
    assert caught.value.field == "[2].to_stage"
    with pytest.raises(InvalidEvent) as caught:
        await store.append_event(event(story_id="x" * 201))
    assert caught.value.field == "story_id"
    assert await store.read_events() == []
    assert await store.append_event(event(1)) == 1


async def test_a_gap_sentinel_enters_by_append_event_alone(store: Store) -> None:
    gap = PipelineEvent("", "2026-01-31T09:30:00Z", "2026-01-31T09:31:00Z", GAP_PIPELINE_EVENT)
    with pytest.raises(InvalidEvent):
        await store.append_events([gap])
    with pytest.raises(InvalidEvent):
        await store.append_batches([EventBatch((event(1), gap))])
    assert await store.append_event(gap) == 1
    await store.append_event(event(2))
    assert await store.assemble_and_advance_session(ROOM) == [
        "events between 2026-01-31T09:30:00Z and 2026-01-31T09:31:00Z were dropped",
        *lines(2, 2),
    ]


async def test_a_known_key_makes_its_batch_a_duplicate_also_after_reopening(path: Path) -> None:
    async with Store.open(path) as store:
        assert await store.append_batches([EventBatch((event(1),), ("a",))]) == [Appended((1,))]
        assert await store.append_batches([EventBatch((event(1),), ("a",)), EventBatch((event(2),), ("b",))]) == [
            Appended((), duplicate=True),
            Appended((2,)),
        ]
    async with Store.open(path) as store:
        assert await store.append_batches([EventBatch((event(9), event(9)), ("new", "b"))]) == [
            Appended((), duplicate=True)
        ]
        assert await store.append_batches([EventBatch((event(3),), ("new",))]) == [Appended((3,))]


async def test_the_same_key_twice_in_one_call_counts_once(store: Store) -> None:
    outcome = await store.append_batches(
        [EventBatch((event(1),), ("a", "a")), EventBatch((event(1),), ("a",)), EventBatch((event(2),), ())]
    )
    assert outcome == [Appended((1,)), Appended((), duplicate=True), Appended((2,))]


async def test_twenty_copies_at_the_same_time_store_one(store: Store) -> None:
    copies = [store.append_batches([EventBatch((event(1), event(2)), ("delivery-7",))]) for _ in range(20)]
    outcomes = [outcome for (outcome,) in await asyncio.gather(*copies)]
    assert outcomes.count(Appended((1, 2))) == 1
    assert outcomes.count(Appended((), duplicate=True)) == 19
    assert len(await store.read_events()) == 2


@pytest.mark.parametrize("key", ["\ud800", 7, None])
async def test_a_key_that_cannot_be_stored_is_refused_at_the_door(store: Store, key: str) -> None:
    beside = asyncio.create_task(store.append_event(event(1)))
    with pytest.raises(InvalidEvent) as caught:
        await store.append_batches([EventBatch((event(2),), (key,))])
    assert caught.value.field == "dedupe_keys"
    assert await beside == 1


async def test_many_callers_share_few_commits(path: Path) -> None:
    async with Store.open(path) as store:
        seqs = await asyncio.gather(*(store.append_event(event(n)) for n in range(500)))
        assert sorted(seqs) == list(range(1, 501))
    ((commits,),) = look(path, "SELECT commits FROM state")
    assert commits < 50


async def test_a_cancelled_caller_that_still_waits_appends_nothing(store: Store) -> None:
    first = asyncio.create_task(store.append_event(event(1)))
    second = asyncio.create_task(store.append_event(event(2)))
    third = asyncio.create_task(store.append_event(event(3)))
    await asyncio.sleep(0)
    second.cancel()
    assert await first == 1
    assert await third == 2
    with pytest.raises(asyncio.CancelledError):
        await second
    assert [one.story_id for one in await store.read_events()] == ["1", "3"]


async def test_a_full_disk_refuses_all_callers_and_leaves_nothing_half_visible(path: Path) -> None:
    async with Store.open(path, sled_id="build-1", segment_events=50) as store:
        await store.append_events(events(1, 60))
        await fill_disk(store)
        long = [replace(one, to_stage="x" * 200) for one in events(61, 400)]
        outcomes = await asyncio.gather(
            store.append_events(long), store.append_batches([EventBatch((event(1),), ("key",))]), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [StoreFull, StoreFull]
        assert [one.event_seq for one in await store.read_events()] == list(range(1, 61))
        assert told(await store.assemble_and_advance_session(ROOM)) == list(range(1, 61))
        await free_disk(store)
        assert await store.append_batches([EventBatch(tuple(events(61, 160)), ("key",))]) == [
            Appended(tuple(range(61, 161)))
        ]
        assert told(await store.assemble_and_advance_session(ROOM)) == list(range(61, 161))
    async with Store.open(path) as store:
        assert [one.story_id for one in await store.read_events()] == [str(n) for n in range(1, 161)]


async def test_an_append_that_was_stored_although_its_commit_failed_counts_as_stored(store: Store) -> None:
    await store.append_event(event(1))
    fail_after_commit(store)
    assert await store.append_event(event(2)) == 2
    assert await store.append_event(event(3)) == 3
    assert [one.story_id for one in await store.read_events()] == ["1", "2", "3"]


async def test_an_append_that_was_stored_unknown_to_its_caller_takes_its_seqs_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def still_broken(connection: object) -> int:
        raise sqlite3.OperationalError("disk I/O error")

    async with Store.open(path, segment_events=3) as store:
        await store.append_events(events(1, 2))
        fail_after_commit(store)
        with monkeypatch.context() as broken:
            broken.setattr(crdt.database, "_force_to_disk", still_broken)
            with pytest.raises(StoreUnavailable):
                await store.append_events(events(3, 5))
        assert await store.append_events(events(6, 8)) == [6, 7, 8]
        assert [one.story_id for one in await store.read_events()] == [str(n) for n in range(1, 9)]
    async with Store.open(path) as store:
        recorded = await store.read_events()
        assert [(one.event_seq, one.story_id) for one in recorded] == [(n, str(n)) for n in range(1, 9)]


async def test_compaction_keeps_what_is_there_and_what_comes_after(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crdt.event_log.COMPACT_LIVE_AFTER_OPS", 10)
    async with Store.open(path, segment_events=25) as store:
        for number in range(1, 61):
            assert await store.append_event(event(number)) == number
        await store.housekeep()
        assert len(await store.read_events()) == 60
    ((ops,), (snapshots,)) = (look(path, f"SELECT count(*) FROM {table}")[0] for table in ("ops", "snapshots"))
    assert ops < 10
    assert snapshots == 3
    async with Store.open(path, segment_events=25) as store:
        assert await store.append_events(events(61, 80)) == list(range(61, 81))
        assert [one.story_id for one in await store.read_events()] == [str(n) for n in range(1, 81)]
    async with Store.open(path, segment_events=25) as store:
        assert told(await store.assemble_and_advance_session(ROOM)) == list(range(1, 81))


async def test_segments_out_of_memory_are_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crdt.event_log.SEALED_SEGMENTS_IN_MEMORY", 2)
    async with Store.open(path, segment_events=3) as store:
        await store.append_events(events(1, 40))
        for _ in range(2):
            assert told(line for line in lines(1, 40)) == [one.event_seq for one in await store.read_events()]
        assert [one.event_seq for one in await store.read_events(after=4, limit=4)] == [5, 6, 7, 8]


def refuse_the_next_append(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        monkeypatch.setattr(crdt.event_log, "insert_ops", insert_ops)
        raise StoreFull(str(store.path))

    monkeypatch.setattr(crdt.event_log, "insert_ops", refuse)


async def test_what_retention_takes_while_the_log_is_read_again_stays_gone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store.open(path, segment_events=3) as store:
        await store.write_llm_session(ROOM, persona_name="", scope="single-sled")
        await store.append_events(events(1, 10))
        log = store._event_log
        load = log._documents.load

        async def load_beside_retention(name: str) -> Document:
            monkeypatch.setattr(log, "_retention", Retention(events=3))
            await log.apply_retention()
            return await load(name)

        monkeypatch.setattr(log._documents, "load", load_beside_retention)
        refuse_the_next_append(store, monkeypatch)
        with pytest.raises(StoreFull):
            await store.append_event(event(11))
        await log.drain()
        assert await store.append_event(event(11)) == 11
        assert [one.event_seq for one in await store.read_events()] == [7, 8, 9, 10, 11]
        assert told(await store.assemble_and_advance_session(ROOM)) == list(range(1, 12))


async def test_events_are_read_while_the_log_is_read_again_however_often_that_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store.open(path) as store:
        await store.append_events(events(1, 3))
    async with Store.open(path) as store:
        log = store._event_log
        load_newest = log._load_newest

        async def load_newest_beside_a_reader() -> None:
            monkeypatch.setattr(log, "_recent", RecentEvents("build-1"))
            seen.append(len(await store.read_events()))
            await load_newest()

        seen: list[int] = []
        monkeypatch.setattr(log, "_load_newest", load_newest_beside_a_reader)
        for number in (4, 5):
            refuse_the_next_append(store, monkeypatch)
            with pytest.raises(StoreFull):
                await store.append_event(event(number))
            assert await store.append_event(event(number)) == number
        await log.drain()
        assert seen == [3, 4]
