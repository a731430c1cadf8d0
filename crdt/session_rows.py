"""The rows of sessions: which part of each is the current one."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from crdt.schema import checksum


@dataclass(frozen=True, slots=True)
class SessionRow:
    """Where a session stands: its current part (from 1) and the turns completed in all its parts."""

    part: int
    turns: int


def read_session_row(connection: sqlite3.Connection, session_id: str) -> SessionRow | None:
    """Read a session's row.

    Raises:
        ValueError: it was altered, or is missing although the session has a document.
    """
    found = connection.execute(
        "SELECT part, turns, checksum FROM sessions WHERE session_id = ?", (session_id,)
    ).fetchone()
    if found is None:
        _check_no_document(connection, session_id)
        return None
    part, turns, stored_checksum = found
    if stored_checksum != checksum(session_id, part, turns):
        raise ValueError(f"the row of session {session_id} was altered")
    return SessionRow(part, turns)


def _check_no_document(connection: sqlite3.Connection, session_id: str) -> None:
    names = (f"session/{session_id}/", f"session/{session_id}0")  # "0" is what follows "/"
    found = connection.execute("SELECT name FROM documents WHERE name > ? AND name < ?", names).fetchall()
    if any(name.rpartition("/")[0] == f"session/{session_id}" for (name,) in found):
        raise ValueError(f"the row of session {session_id} is missing")


def write_session_row(connection: sqlite3.Connection, session_id: str, row: SessionRow) -> None:
    """Store a session's row."""
    connection.execute(  # not OR REPLACE, which would write the row and its index anew
        "INSERT INTO sessions VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE "
        "SET part = excluded.part, turns = excluded.turns, checksum = excluded.checksum",
        (session_id, row.part, row.turns, checksum(session_id, row.part, row.turns)),
    )
