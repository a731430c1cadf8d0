"""Makes a backup: one file that holds the database as it was at one commit, beside a service that goes on writing."""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from contextlib import closing
from pathlib import Path

from crdt import settings
from crdt.care.files import bring_up_to_date, connect, copy, left_beside, put_in_place, reading, translating
from crdt.care.progress import Progress, unwatched
from crdt.care.verify import Verification, examine
from crdt.database import in_snapshot
from crdt.errors import BackupExists, StoreDamaged, StoreUnavailable
from crdt.owner import lock_path


def back_up_database(
    path: str | Path, backup: str | Path, *, force: bool = False, progress: Progress = unwatched
) -> Verification:
    """Write a backup of the database at `path` into the file `backup`, and verify it before it gets that name.

    It carries a mark that it is a backup: put in a database's place by hand, it begins anew all the same.

    Raises:
        BackupExists: there is such a file, and `force` is not set.
        StoreDamaged: the database is; no backup was written.
        StoreNewer, StoreUnavailable: the database can't be read, or the backup can't be written where it should be.
    """
    source, target = Path(path), Path(backup)
    _check_free(source, target, force)
    # A name of its own: another backup may be made into the same place at the same time.
    made = target.with_name(f"{target.name}.unfinished-{uuid.uuid4().hex[:8]}")
    try:
        with reading(source, older=True) as connection, translating(target):
            copy(connection, made, progress, "copying")
        with translating(target), closing(connect(made, "rw")) as connection:
            verification = _finish(connection, made, progress)
            if verification.problems:
                raise StoreDamaged(str(source), "; ".join(verification.problems[:3]))
        _check_free(source, target, force)
        with translating(target):
            put_in_place(made, target)
    finally:
        remove(made)
    return verification


def _check_free(source: Path, target: Path, force: bool) -> None:
    with translating(source):
        # Not by `resolve`, which fails where links lead round in a circle.
        itself = Path(os.path.realpath(source))
        own = (itself, *left_beside(itself), itself.with_name(f"{itself.name}-shm"), lock_path(itself))
    with translating(target):
        if Path(os.path.realpath(target)) in own:  # there or not: SQLite and the lock would take it for theirs
            problem = "is the database itself, or has the name of a file that belongs to it"
            raise StoreUnavailable(str(target), problem, "name another file for the backup")
        for there in filter(Path.exists, (target, *left_beside(target))):
            if not force:
                raise BackupExists(str(there))
            if not there.is_file():
                raise StoreUnavailable(str(there), "is no file", "name another file for the backup")


def _finish(connection: sqlite3.Connection, made: Path, progress: Progress) -> Verification:
    # One file, without a WAL beside it, so that it can be read from a medium that can't be written.
    connection.execute("PRAGMA journal_mode = DELETE").fetchall()
    bring_up_to_date(connection, made)
    settings.write(connection, {settings.BACKUP_MADE_AT_MS: str(time.time_ns() // 1_000_000)})
    return in_snapshot(connection, lambda snapshot: examine(snapshot, progress))


def remove(file: Path) -> None:
    """Remove a database file that was not finished, with what SQLite may have put beside it."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        left = file.with_name(file.name + suffix)
        # Where none could be made, none can be removed, and that would be told in place of why.
        if os.path.lexists(left):
            left.unlink(missing_ok=True)
