"""The rows of turns: which were begun, how often, and what became of each."""

from __future__ import annotations

import sqlite3

from crdt.errors import UnknownTurn
from crdt.schema import checksum

_WHERE = "WHERE session_id = ? AND key = ?"
_SET_ATTEMPTS = (
    "UPDATE turns SET attempts = attempts + ?1, "
    "checksum = row_checksum(session_id, key, attempts + ?1, outcome, begun_at) "
    "WHERE session_id = ?2 AND key = ?3 AND outcome IS NULL AND attempts + ?1 >= 0"
)


class TurnKnown(Exception):
    """The turn that was to be begun has a row already."""


class TurnSettled(Exception):
    """The turn that was to be completed is complete already."""


def insert(connection: sqlite3.Connection, session_id: str, key: str, now_ms: int) -> None:
    """Begin a turn.

    Raises:
        TurnKnown: it was begun before.
    """
    fields = (session_id, key, 1, None, now_ms)
    row = (*fields, checksum(*fields))
    if connection.execute("INSERT OR IGNORE INTO turns VALUES (?, ?, ?, ?, ?, ?)", row).rowcount == 0:
        raise TurnKnown


def attempt_again(connection: sqlite3.Connection, session_id: str, key: str) -> int:
    """Count one attempt more at a turn that is open, and return how many there were."""
    connection.execute(_SET_ATTEMPTS, (1, session_id, key))
    return int(connection.execute(f"SELECT attempts FROM turns {_WHERE}", (session_id, key)).fetchone()[0])


def take_attempt_back(connection: sqlite3.Connection, session_id: str, key: str) -> None:
    """Count one attempt less at a turn that is open."""
    connection.execute(_SET_ATTEMPTS, (-1, session_id, key))


def settle(connection: sqlite3.Connection, session_id: str, key: str, outcome: str) -> None:
    """End a turn.

    Raises:
        UnknownTurn: it was never begun.
        TurnSettled: it was ended before.
    """
    found = connection.execute(f"SELECT outcome FROM turns {_WHERE}", (session_id, key)).fetchone()
    if found is None:
        raise UnknownTurn(session_id, key)
    if found[0] is not None:
        raise TurnSettled
    connection.execute(
        "UPDATE turns SET outcome = ?1, checksum = row_checksum(session_id, key, attempts, ?1, begun_at) "
        "WHERE session_id = ?2 AND key = ?3",
        (outcome, session_id, key),
    )


def move(connection: sqlite3.Connection, old: str, new: str) -> None:
    """Give all turns of one session to another, which has none.

    Where one is open, the newest attempt at it comes to nothing, and is no death: it is taken back.
    """
    attempts = "(attempts - (outcome IS NULL AND attempts > 0))"
    connection.execute(
        f"UPDATE turns SET session_id = ?1, attempts = {attempts}, "
        f"checksum = row_checksum(?1, key, {attempts}, outcome, begun_at) WHERE session_id = ?2",
        (new, old),
    )


def still_open(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Read which turns have no end yet, by session and key."""
    return connection.execute("SELECT session_id, key FROM turns WHERE outcome IS NULL ORDER BY begun_at").fetchall()
