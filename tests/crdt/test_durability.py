"""What every acknowledged commit rests on: the pragmas of the connection that writes, also after a failed commit."""

from __future__ import annotations

import sqlite3

import pytest

from crdt import Store
from crdt.database import Database
from tests.crdt.breakage import fail_after_commit
from tests.crdt.samples import event

PINNED = {
    "journal_mode": "wal",
    "synchronous": 2,  # FULL: the WAL is synced by each commit, before it returns
    "secure_delete": 1,
    "locking_mode": "normal",
    "wal_autocheckpoint": 1000,
}


async def pragmas_of_the_writer(database: Database) -> dict[str, object]:
    assert database._writer is not None

    def read(connection: sqlite3.Connection) -> dict[str, object]:
        return {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in PINNED}

    return await database._writer.run(read)


@pytest.mark.parametrize("reopened", [False, True])
async def test_commits_are_synced_into_a_wal_before_they_are_acknowledged(store: Store, reopened: bool) -> None:
    if reopened:
        fail_after_commit(store)
    assert await store.append_event(event(1)) == 1
    assert await pragmas_of_the_writer(store._database) == PINNED


async def test_what_is_acknowledged_can_be_read_by_others(store: Store) -> None:
    assert await store.append_event(event(1)) == 1
    other = sqlite3.connect(store.path)
    try:
        assert other.execute("SELECT commits FROM state").fetchone() == (store._database.commits,)
        assert other.execute("SELECT count(*) FROM ops").fetchone() == (1,)
    finally:
        other.close()
