"""Small values for the store's tests, and how lines are read back into what they tell."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crdt import Delivery, Message, PipelineEvent, audit_line, parse_audit_line
from crdt.schema import MIGRATIONS, prepare, unpacked

ROOM = "!room:example.org"
OTHER_ROOM = "!other"

_GAP = re.compile(r"events between (\d+) and (\d+) were dropped")
_FOLD = re.compile(r"(\d+) earlier events \(seq (\d+)-(\d+)\) omitted")


def event(number: int = 1, **changes: Any) -> PipelineEvent:
    """An event whose story is its number."""
    fields = {"from_stage": "2_current", "to_stage": "3_qa", "pipeline_event": "GatesStarted"} | changes
    return PipelineEvent(**{"story_id": str(number), **fields})


def events(first: int, last: int) -> list[PipelineEvent]:
    """The events with the numbers `first` to `last`."""
    return [event(number) for number in range(first, last + 1)]


def lines(first: int, last: int) -> list[str]:
    """The audit lines of the events with the numbers `first` to `last`."""
    return [audit_line(one) for one in events(first, last)]


def message(key: str, text: str = "hello", session_id: str = ROOM, **changes: Any) -> Message:
    """A person's message."""
    return Message(**{"key": key, "session_id": session_id, "sender": "@alice:example.org", "text": text, **changes})


def delivery(delivery_id: str, session_id: str = ROOM, content: str = '{"body":"hi"}') -> Delivery:
    """An outgoing event."""
    return Delivery(delivery_id, session_id, content)


def told(told_lines: Iterable[str]) -> list[int]:
    """The seqs that lines tell of, by name or by range, in their order; each event's story must be its seq."""
    seqs: list[int] = []
    for line in told_lines:
        found = _GAP.fullmatch(line)
        if found:
            seqs.extend(range(int(found[1]), int(found[2]) + 1))
            continue
        found = _FOLD.fullmatch(line)
        if found:
            folded = range(int(found[2]), int(found[3]) + 1)
            assert len(folded) == int(found[1]), line
            seqs.extend(folded)
            continue
        parsed = parse_audit_line(line)
        assert parsed is not None, line
        seqs.append(int(parsed.story_id))
    return seqs


def alter(database: Path, statement: str, *parameters: object) -> int:
    """Change a closed database behind the store's back; returns how many rows were changed."""
    connection = sqlite3.connect(database)
    try:
        changed = connection.execute(statement, parameters).rowcount
        connection.commit()
    finally:
        connection.close()
    return changed


def go_back_to_the_fourth_schema(database: Path) -> None:
    """Make a database as it was before snapshots were packed, and before ops had one number for a key."""
    (ops,) = (each for each in MIGRATIONS[0].split(";") if "CREATE TABLE ops" in each)
    name = "(SELECT name FROM documents WHERE documents.doc_id = snapshots.doc_id)"
    connection = sqlite3.connect(database)
    prepare(connection)
    connection.create_function("unpacked", 1, unpacked)
    connection.execute("ALTER TABLE snapshots RENAME COLUMN packed_data TO data")
    connection.execute(
        f"UPDATE snapshots SET checksum = row_checksum({name}, ops, unpacked(data)), data = unpacked(data)"
    )
    connection.execute("ALTER TABLE ops RENAME TO newer_ops")
    connection.execute(ops)
    connection.execute("INSERT INTO ops SELECT doc_id, seq, writer_id, data, checksum FROM newer_ops")
    connection.execute("DROP TABLE newer_ops")
    connection.execute("PRAGMA user_version = 4")
    connection.commit()
    connection.close()


def look(database: Path, query: str, *parameters: object) -> list[Any]:
    """Read rows with SQLite alone."""
    connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)
    try:
        return connection.execute(query, parameters).fetchall()
    finally:
        connection.close()


def on_disk(database: Path) -> bytes:
    """All bytes of the database and of the files beside it."""
    return b"".join(file.read_bytes() for file in database.parent.iterdir())
