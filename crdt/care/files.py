"""Database files as care handles them: opened to be read, copied page by page, put on the disk for good."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from crdt import opening, schema
from crdt.care.progress import Progress
from crdt.database import in_snapshot
from crdt.errors import StoreUnavailable, translate
from crdt.owner import Witness, read_witness
from crdt.state import State

COPIED_PAGES: Final = 1024
"""Pages (of 4 KiB) that are copied at a time: progress is told a few times a second."""


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Connect to a file in SQLite's `mode` ("ro" or "rw"), with what statements of the store need."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None)
    schema.prepare(connection)
    for pragma in schema.PRAGMAS[2:]:
        connection.execute(pragma).fetchall()
    return connection


@contextmanager
def translating(path: Path) -> Iterator[None]:
    """Tell what SQLite or the file system reports in the store's own words."""
    try:
        yield
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
        raise translate(path, error) from error


def check_is_there(path: Path, witness: Witness | None) -> None:
    """Refuse to care for what is no file."""
    opening.check_presence(path, witness)
    if not path.is_file():
        problem = "is no file" if path.exists() else "does not exist"
        raise StoreUnavailable(str(path), problem, "check the path")


@contextmanager
def reading(path: Path, *, older: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a database to be read, beside its owner; with `older` also one that an older Musher wrote.

    Raises:
        StoreDamaged, StoreNewer, StoreUnavailable: it can't be, or it has lost its newest commits.
    """
    with translating(path):
        witness = read_witness(path)
        check_is_there(path, witness)
        opening.check_file_to_read(path)
        with closing(connect(path, "ro")) as connection:
            opening.check_schema(connection, path)
            found: int = connection.execute("PRAGMA user_version").fetchone()[0]
            look = opening.inspect if older and 0 < found < schema.SCHEMA else opening.read_current_state
            in_snapshot(connection, lambda each: look(each, path, witness))
            yield connection


def copy(source: sqlite3.Connection, target: Path, progress: Progress, doing: str) -> None:
    """Copy a database into a new file that only its owner may read, as it is at one commit, whatever goes on."""
    target.unlink(missing_ok=True)
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    # The open transaction holds the commit fast: without it, each write of the service would begin the copy again.
    source.execute("BEGIN")
    try:
        source.execute("SELECT 1 FROM sqlite_master").fetchall()
        with closing(sqlite3.connect(target, isolation_level=None)) as connection:
            source.backup(
                connection,
                pages=COPIED_PAGES,
                progress=lambda _status, remaining, total: progress(doing, total - remaining, total),
            )
    finally:
        source.rollback()


def bring_up_to_date(connection: sqlite3.Connection, path: Path) -> State:
    """Bring a copy to the present schema, and read whose it is."""
    opening.migrate(connection, path)
    return opening.read_current_state(connection, path, None)


def left_beside(database: Path) -> tuple[Path, ...]:
    """Where a death leaves what SQLite would play into any file that takes the database's name."""
    return tuple(database.with_name(f"{database.name}{suffix}") for suffix in ("-wal", "-journal"))


def put_in_place(made: Path, place: Path) -> None:
    """Give a finished file its name, so that after a power cut there is the old one or the new one, whole."""
    sync(made)
    for left in left_beside(place):
        left.unlink(missing_ok=True)
    sync(place.parent)
    os.replace(made, place)
    sync(place.parent)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
