"""Compact: smaller, and the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from crdt import (
    Store,
    StoreBusy,
    StoreDamaged,
    StoreReader,
    StoreUnavailable,
    compact_database,
    verify_database,
)
from tests.crdt.care.life import contents, files, live
from tests.crdt.samples import alter, event, look


async def test_a_compacted_database_is_smaller_and_holds_the_same(path: Path) -> None:
    async with Store.open(path, sled_id="build-1", segment_events=50) as store:
        for number in range(1, 200):
            await store.append_event(event(number))
        await live(store)
    before = await contents(path)
    steps: list[tuple[str, int, int]] = []
    done = await compact_database(path, segment_events=50, progress=lambda *step: steps.append(step))
    assert await contents(path) == before
    assert verify_database(path).problems == ()
    assert done.bytes_after < done.bytes_before
    assert len(files(path.parent)[path.name]) == done.bytes_after
    assert look(path, "SELECT count(*) FROM ops") == [(0,)]
    assert {doing for doing, _, _ in steps} == {
        "checking pages",
        "reading documents",
        "compacting documents",
        "writing the file anew",
    }
    async with Store.open(path, segment_events=50) as store:
        assert await store.append_event(event(217)) == len(before["log"]) + 1  # type: ignore[arg-type]


async def test_compacting_applies_retention_and_prunes(full: Path) -> None:
    done = await compact_database(full, segment_events=5, retention_events=4)
    assert done.pruned == 0
    async with StoreReader.open(full) as reader:
        assert [each.event_seq for each in await reader.read_events()] == list(range(11, 18))
    alter(full, "UPDATE inbox SET admitted_at = 0 WHERE outcome IS NOT NULL")
    assert (await compact_database(full, segment_events=5)).pruned == 3


async def test_nothing_is_compacted_beside_the_owner_or_when_damaged(full: Path) -> None:
    async with Store.open(full):
        with pytest.raises(StoreBusy):
            await compact_database(full, segment_events=5)
    alter(full, "UPDATE snapshots SET packed_data = zeroblob(40) WHERE doc_id = 2")
    before = look(full, "SELECT * FROM ops")
    with pytest.raises(StoreDamaged, match="snapshot of document log/build-1/2"):
        await compact_database(full, segment_events=5, retention_events=1)
    assert look(full, "SELECT * FROM ops") == before


async def test_what_is_not_there_is_not_made_to_be_compacted(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "musher.db"
    with pytest.raises(StoreUnavailable, match="does not exist"):
        await compact_database(path, segment_events=5)
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240 - nothing else is under way
