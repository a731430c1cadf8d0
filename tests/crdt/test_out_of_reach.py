"""A database whose folder can't be looked into, as another user's: told in the store's words, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from crdt import (
    Store,
    StoreReader,
    StoreUnavailable,
    back_up_database,
    compact_database,
    restore_database,
    verify_database,
)

REFUSED = r"can't be opened .*: check that its folder exists"


@pytest.fixture
def unreachable(tmp_path: Path) -> Path:
    """A place that the file system refuses to look at, also for root."""
    return tmp_path / ("d" * 300) / "musher.db"


@pytest.fixture
async def reachable(path: Path) -> Path:
    async with Store.open(path):
        return path


async def test_a_reader_says_what_to_do(unreachable: Path) -> None:
    with pytest.raises(StoreUnavailable, match=REFUSED):
        async with StoreReader.open(unreachable):
            pass


async def test_care_says_what_to_do(unreachable: Path, reachable: Path) -> None:
    with pytest.raises(StoreUnavailable, match=REFUSED):
        verify_database(unreachable)
    with pytest.raises(StoreUnavailable, match=REFUSED):
        await compact_database(unreachable, segment_events=5, retention_events=5, retention_days=1)
    for care in (back_up_database, restore_database):
        for place, backup in ((unreachable, reachable.with_name("b.db")), (reachable, unreachable)):
            with pytest.raises(StoreUnavailable, match=REFUSED):
                care(place, backup)
