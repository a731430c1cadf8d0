"""The tables of the database file, as numbered migrations, and the pragmas that its promise rests on.

Every row whose loss or change would alter what a session was told carries a CRC-32 of its fields: `integrity_check`
misses most flipped bits (measured: 32 of 40), a CRC misses none of a single one.
"""

from __future__ import annotations

import sqlite3
import zlib
from typing import Final

APPLICATION_ID: Final = 0x4D555348
"""SQLite's `application_id` of a Musher database: "MUSH"."""

_LEVEL: Final = 1
"""Of zlib. Higher ones make a log's snapshot a seventh smaller, in two to five times the time."""

PRAGMAS: Final = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA secure_delete = ON",
    "PRAGMA busy_timeout = 5000",
    "PRAGMA temp_store = MEMORY",
)

_FIRST = """
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    database_id TEXT NOT NULL,
    sled_id TEXT NOT NULL,
    writer_id INTEGER NOT NULL,
    commits INTEGER NOT NULL
) STRICT;
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL) STRICT;

CREATE TABLE documents (
    doc_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    ops INTEGER NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE ops (
    doc_id INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    writer_id INTEGER NOT NULL,
    data BLOB NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (doc_id, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE snapshots (
    doc_id INTEGER PRIMARY KEY,
    ops INTEGER NOT NULL,
    data BLOB NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;

CREATE TABLE segments (
    sled_id TEXT NOT NULL,
    segment INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    events INTEGER NOT NULL,
    sealed_at INTEGER,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (sled_id, segment)
) STRICT, WITHOUT ROWID;
CREATE TABLE dedupe (key TEXT PRIMARY KEY, recorded_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX dedupe_by_age ON dedupe (recorded_at);

CREATE TABLE sessions (
    session_id TEXT PRIMARY KEY,
    part INTEGER NOT NULL,
    turns INTEGER NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE turns (
    session_id TEXT NOT NULL,
    key TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    outcome TEXT,
    begun_at INTEGER NOT NULL,
    PRIMARY KEY (session_id, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE inbox (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    session_id TEXT NOT NULL,
    sender TEXT NOT NULL,
    text TEXT,
    is_context INTEGER NOT NULL,
    details TEXT,
    turn_key TEXT,
    outcome TEXT,
    admitted_at INTEGER NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
CREATE INDEX inbox_waiting ON inbox (session_id, position) WHERE outcome IS NULL;
CREATE INDEX inbox_by_turn ON inbox (turn_key) WHERE outcome IS NULL;

CREATE TABLE outbox (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    delivery_id TEXT NOT NULL UNIQUE,
    session_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    content TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    first_attempt_at REAL,
    outcome TEXT,
    event_id TEXT,
    queued_at INTEGER NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
CREATE INDEX outbox_due ON outbox (session_id, position) WHERE outcome IS NULL;
"""

_SECOND = """
ALTER TABLE state ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
UPDATE state SET checksum = row_checksum(database_id, sled_id, writer_id, commits);
ALTER TABLE turns ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
UPDATE turns SET checksum = row_checksum(session_id, key, attempts, outcome, begun_at);
UPDATE outbox SET checksum = row_checksum(delivery_id, session_id, event_type, content, attempts, first_attempt_at)
    WHERE outcome IS NULL;
"""

_THIRD = """
CREATE TABLE taken_back (
    key TEXT PRIMARY KEY,
    session_id TEXT NOT NULL,
    checksum INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""

# No table changes. From here on the row of the segment that grows lags behind its document, by which an older version
# would give seqs out a second time: it must refuse the file.
_FOURTH = ""

# Snapshots are packed. One that was altered stays as it is, to be found by whoever reads it.
# The new name shows that it was done: a bit that flips in the schema's number must not have it done twice.
_FIFTH = """
ALTER TABLE snapshots RENAME COLUMN data TO packed_data;
UPDATE snapshots SET packed_data = packed(packed_data), checksum = row_checksum(
    (SELECT name FROM documents WHERE documents.doc_id = snapshots.doc_id), ops, packed(packed_data)
) WHERE checksum = row_checksum(
    (SELECT name FROM documents WHERE documents.doc_id = snapshots.doc_id), ops, packed_data
);
"""

# One integer is the key, so that an op of some kilobytes stands whole on one page: a key of two columns had what is
# beyond 1,000 bytes on pages of its own, and each turn wrote two pages more for it.
_SIXTH = """
ALTER TABLE ops RENAME TO ops_of_two_columns;
CREATE TABLE ops (
    op_id INTEGER PRIMARY KEY,
    doc_id INTEGER AS (op_id >> 32) VIRTUAL,
    seq INTEGER AS (op_id & 4294967295) VIRTUAL,
    writer_id INTEGER NOT NULL,
    data BLOB NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
INSERT INTO ops (op_id, writer_id, data, checksum)
    SELECT doc_id << 32 | seq, writer_id, data, checksum FROM ops_of_two_columns;
DROP TABLE ops_of_two_columns;
"""

MIGRATIONS: Final = (_FIRST, _SECOND, _THIRD, _FOURTH, _FIFTH, _SIXTH)
"""Script n brings a database from schema n to n + 1; a published script is never changed."""

SCHEMA: Final = len(MIGRATIONS)
"""The schema that this version writes, kept in `user_version`."""


def prepare(connection: sqlite3.Connection) -> None:
    """Give a connection `row_checksum(…)` and `packed(…)`, which statements that write rows use."""
    connection.create_function("row_checksum", -1, checksum, deterministic=True)
    connection.create_function("packed", 1, packed, deterministic=True)


def migrate(connection: sqlite3.Connection, found: int, wanted: int = SCHEMA) -> None:
    """Bring the database from schema `found` to `wanted`, all or nothing. The connection has been prepared."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for script in MIGRATIONS[found:wanted]:
            for statement in script.split(";"):
                if statement.strip():
                    connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {wanted}")
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def packed(data: bytes) -> bytes:
    """Bytes as they stand in a row of snapshots: by zlib, which leaves a sixth of a log's to be checked at a start."""
    return zlib.compress(data, _LEVEL)


def unpacked(data: bytes) -> bytes:
    """Read back what `packed` made.

    Raises:
        ValueError: it is nothing that `packed` made.
    """
    try:
        return zlib.decompress(data)
    except zlib.error as error:
        raise ValueError(str(error)) from error


def checksum(*fields: object, after: int = 0) -> int:
    """CRC-32 over the fields of a row: integers and text by their text, bytes as they are, each with its length.

    `after` is that of fields that come before these: `checksum(a, b) == checksum(b, after=checksum(a))`.
    """
    crc = after
    for field in fields:
        if isinstance(field, bytes):
            data = field
        elif isinstance(field, str):
            data = str.encode(field)  # of a class derived from `str`, as an enum's members may be, the characters
        else:
            data = str(field).encode()
        crc = zlib.crc32(data, zlib.crc32(b"%d:" % len(data), crc))
    return crc
