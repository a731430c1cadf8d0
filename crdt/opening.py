"""What has to be so before a database is used: it is Musher's, sound, complete, and of a known schema."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from crdt import schema, settings, soundness
from crdt.errors import SledMismatch, StoreDamaged, StoreNewer, StoreUnavailable
from crdt.owner import Witness, is_owned_here, lock_path
from crdt.state import State, new_state, read_state, write_state

log = structlog.get_logger(__name__)

BeginAnew = Callable[[sqlite3.Connection, State], State]
"""What makes of a copy from an earlier time a database that goes on from there, inside a transaction of its caller; it
returns the new identity."""

_SQLITE_MAGIC: Final = b"SQLite format 3\x00"
_SQLITE_HEADER: Final = 100
_STATE_HAS_CHECKSUM: Final = 2
"""The first schema in which the row of the state can be relied on."""
_FILE_FORMATS: Final = frozenset((1, 2))
"""Bytes 18 and 19 of the header (https://sqlite.org/fileformat.html): without a WAL, and with one."""


def check_file(path: Path) -> None:
    """Refuse what is no SQLite database at all."""
    if not path.exists():
        return
    if not path.is_file():  # reading a pipe that nobody writes into would never end
        raise StoreUnavailable(str(path), "is no file", "point store.path at another file")
    with path.open("rb") as file:
        header = file.read(_SQLITE_HEADER)
    if header and not header.startswith(_SQLITE_MAGIC):
        raise StoreDamaged(
            str(path), "the file is not an SQLite database", "point store.path at another file, or restore a backup"
        )
    if header and not _FILE_FORMATS.issuperset(header[18:20]):  # SQLite would take it for one that can't be written
        raise StoreDamaged(str(path), "the file format in its header was altered")


def check_file_to_read(path: Path) -> None:
    """Do as `check_file`, but leave alone what this process owns, and so has checked.

    The locks that SQLite holds on a file go when the process closes any descriptor of it
    (https://sqlite.org/howtocorrupt.html): another program could take the WAL away from under the owner then.
    """
    if not is_owned_here(path):
        check_file(path)


def check_only_name(path: Path) -> None:
    """Refuse a file that has another name: the lock and the WAL go by the name, so two services could open it."""
    names = path.stat().st_nlink
    if names > 1:
        problem = f"has {names} names (hard links), under each of which a service could open it"
        raise StoreUnavailable(str(path), problem, "remove the other names, or copy the file")


def check_presence(path: Path, witness: Witness | None) -> None:
    """Refuse a file that is gone, or empty, although commits were made in it."""
    if witness is None or witness.commits == 0 or (path.exists() and path.stat().st_size):
        return
    raise StoreDamaged(
        str(path),
        f"the file is {'empty' if path.exists() else 'gone'}, and {witness.commits} commits were made in it",
        f"restore a backup with 'musher db restore FILE', or remove {lock_path(path)} to begin with an empty database",
    )


def check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that is not Musher's, or is a newer Musher's, before anything in it is touched."""
    application_id: int = connection.execute("PRAGMA application_id").fetchone()[0]
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    is_empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if application_id != schema.APPLICATION_ID and not (is_empty and application_id == 0):
        raise StoreDamaged(str(path), "it is another program's database", "point store.path at another file")
    if found > schema.SCHEMA:
        raise StoreNewer(str(path), found, schema.SCHEMA)


def inspect(connection: sqlite3.Connection, path: Path, witness: Witness | None) -> None:
    """Refuse a database that is damaged, or behind its witness."""
    check_schema(connection, path)
    try:
        if soundness.check(connection) >= _STATE_HAS_CHECKSUM:
            check_witness(read_state(connection), path, witness)
    except ValueError as error:
        raise StoreDamaged(str(path), str(error)) from error


def check_witness(state: State | None, path: Path, witness: Witness | None) -> None:
    """Refuse a database that has lost commits since its witness was written."""
    if witness is None or state is None or witness.database_id != state.database_id:
        return
    if witness.commits > state.commits:
        raise StoreDamaged(str(path), f"the newest {witness.commits - state.commits} commits are missing")


def prepare(
    connection: sqlite3.Connection,
    path: Path,
    sled_id: str | None,
    witness: Witness | None,
    begin_anew: BeginAnew | None,
) -> State:
    """Bring an inspected database up to date, or make it; returns whose it is from now on."""
    check_sled(connection, path, sled_id)
    migrate(connection, path)
    state = read_state(connection)
    if state is None:
        state = new_state(sled_id)
        write_state(connection, state)
        log.info("database_created", path=str(path), sled=state.sled_id)
        return state
    check_witness(state, path, witness)
    was_replaced = witness is not None and witness.database_id != state.database_id
    if was_replaced or settings.read(connection, settings.BACKUP_MADE_AT_MS) is not None:
        log.warning("database_replaced", path=str(path), found=state.database_id, commits=state.commits)
        state = in_one_commit(connection, path, state, begin_anew) if begin_anew is not None else state
    return state


def check_sled(connection: sqlite3.Connection, path: Path, sled_id: str | None) -> None:
    """Refuse another sled's database, before it is brought to a schema that this sled's own Musher may not know."""
    has_tables: bool = connection.execute("PRAGMA user_version").fetchone()[0] > 0
    stored = connection.execute("SELECT sled_id FROM state").fetchone() if has_tables else None
    if stored is not None and sled_id not in (None, stored[0]):
        raise SledMismatch(str(path), stored[0], str(sled_id))


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring a database of an older schema up to date."""
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if found < schema.SCHEMA:
        try:
            schema.migrate(connection, found)
        except sqlite3.IntegrityError as error:
            raise StoreDamaged(str(path), f"a row does not fit into schema {schema.SCHEMA}: {error}") from error
        log.info("schema_migrated", path=str(path), found=found, schema=schema.SCHEMA)


def in_one_commit(connection: sqlite3.Connection, path: Path, state: State, begin_anew: BeginAnew) -> State:
    """Have a database begin anew, all or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        state = begin_anew(connection, state)
        connection.execute("COMMIT")
    except BaseException as error:
        connection.rollback()
        if isinstance(error, ValueError):
            raise StoreDamaged(str(path), str(error)) from error
        raise
    return state


def read_current_state(connection: sqlite3.Connection, path: Path, witness: Witness | None) -> State:
    """Read whose database this is, for somebody who only looks.

    Raises:
        StoreDamaged: the row was altered, or the database is behind its witness.
        StoreUnavailable: it is empty, or older than this version.
    """
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if 0 < found < schema.SCHEMA:
        raise StoreUnavailable(
            str(path), f"still has schema {found}, not {schema.SCHEMA}", "start 'musher run' once, which updates it"
        )
    try:
        state = read_state(connection) if found else None
    except ValueError as error:
        raise StoreDamaged(str(path), str(error)) from error
    if state is None:
        raise StoreUnavailable(str(path), "is still empty", "start 'musher run' first")
    check_witness(state, path, witness)
    return state
