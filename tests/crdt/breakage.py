"""Ways to make a store's disk fail, through the connection that it writes with."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import crdt.database
from crdt import Store, StoreUnavailable
from crdt.owner import Witness


async def fill_disk(store: Store, spare_pages: int = 1) -> None:
    """Let the database grow by `spare_pages` pages and no more, as on a disk that is full, until `free_disk`."""
    database = store._database

    def limit(connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + spare_pages}").fetchall()

    assert database._writer is not None
    await database._writer.run(limit)


async def free_disk(store: Store) -> None:
    """Take the limit of `fill_disk` away."""
    database = store._database
    if database._writer is not None:
        await database._writer.run(lambda connection: connection.execute("PRAGMA max_page_count = 1000000").fetchall())


def fail_after_commit(store: Store) -> None:
    """Report the next commit as failed although it is on the disk, as a failed fsync may."""
    lock = store._database._lock
    write_witness = lock.write_witness

    def fail(witness: Witness) -> None:
        lock.write_witness = write_witness  # type: ignore[method-assign]
        raise sqlite3.OperationalError("disk I/O error")

    lock.write_witness = fail  # type: ignore[method-assign]


@contextmanager
def commit_in_doubt(store: Store) -> Iterator[None]:
    """Have the next commit reported as failed although it is on the disk, which can't be asked at that moment."""

    def unreadable(connection: sqlite3.Connection) -> int:
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.MonkeyPatch.context() as broken, pytest.raises(StoreUnavailable):
        broken.setattr(crdt.database, "_force_to_disk", unreadable)
        fail_after_commit(store)
        yield
