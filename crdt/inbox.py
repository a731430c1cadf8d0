"""The inbox: messages that were admitted and wait to be settled, as rows that the store does not look into.

Admit and the sync token share one commit. A settled row keeps its key, so that the same message is never admitted
twice, and forgets its text.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from crdt.errors import MessageChanged
from crdt.model import Edit, Message, TakenBack
from crdt.schema import checksum
from crdt.transcript import well_formed

MAX_CONTEXT = 50
"""Messages of one session that wait as context; of more, only the newest are kept."""


def _checksum(key: str, session_id: str, sender: str, text: str, is_context: bool, details: str) -> int:
    return checksum(key, session_id, sender, text, int(is_context), details)


def insert(connection: sqlite3.Connection, messages: Iterable[Message], now_ms: int) -> list[Message]:
    """Add messages, but for those whose key is known; returns those that were new, as they are stored."""
    new = []
    for message in messages:
        key, session_id, sender, text, details = (
            well_formed(field)
            for field in (message.key, message.session_id, message.sender, message.text, message.details)
        )
        row = (key, session_id, sender, text, message.context, details)
        added = connection.execute(
            "INSERT OR IGNORE INTO inbox (key, session_id, sender, text, is_context, details, admitted_at, checksum) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, now_ms, _checksum(*row)),
        ).rowcount
        if added:
            new.append(Message(*row))
    for session_id in {message.session_id for message in new if message.context}:
        _forget_older_context(connection, session_id)
    return new


def _forget_older_context(connection: sqlite3.Connection, session_id: str) -> None:
    beyond = connection.execute(
        "SELECT key FROM inbox WHERE session_id = ? AND outcome IS NULL AND is_context AND turn_key IS NULL "
        "ORDER BY position DESC LIMIT -1 OFFSET ?",
        (session_id, MAX_CONTEXT),
    ).fetchall()
    settle(connection, [key for (key,) in beyond], "beyond the newest context")


def edit(connection: sqlite3.Connection, edits: Iterable[Edit]) -> int:
    """Change the text of messages that no turn has frozen, each by its own sender; returns how many changed."""
    changed = 0
    for change in edits:
        key, sender, text = (well_formed(field) for field in (change.key, change.sender, change.text))
        row = connection.execute(
            "SELECT session_id, is_context, details FROM inbox "
            "WHERE key = ? AND sender = ? AND outcome IS NULL AND turn_key IS NULL",
            (key, sender),
        ).fetchone()
        if row:
            session_id, is_context, details = row
            connection.execute(
                "UPDATE inbox SET text = ?, checksum = ? WHERE key = ?",
                (text, _checksum(key, session_id, sender, text, is_context, details), key),
            )
            changed += 1
    return changed


def redact(connection: sqlite3.Connection, keys: Iterable[str]) -> int:
    """Settle redacted messages that no turn has frozen; returns how many there were.

    Those that a turn has taken are noted: their text stands in the transcript, and is replaced there at a roll.
    """
    unfrozen = []
    for key in map(well_formed, keys):
        row = connection.execute("SELECT session_id, turn_key FROM inbox WHERE key = ?", (key,)).fetchone()
        if row is not None and row[1] is not None:
            values = (key, row[0], checksum(key, row[0]))
            connection.execute("INSERT OR IGNORE INTO taken_back VALUES (?, ?, ?)", values)
        elif row is not None:
            unfrozen.append(key)
    return settle(connection, unfrozen, "redacted")


def taken_back(connection: sqlite3.Connection, session_id: str) -> list[TakenBack]:
    """Read what a session's transcript still holds of messages that were taken back."""
    of_turn = "SELECT count(*) FROM inbox WHERE turn_key = this.turn_key AND is_context = this.is_context"
    rows = connection.execute(
        f"SELECT key, turn_key, is_context, ({of_turn} AND position < this.position), ({of_turn}) "
        "FROM taken_back JOIN inbox AS this USING (key) WHERE taken_back.session_id = ?",
        (session_id,),
    ).fetchall()
    return [TakenBack(key, turn_key, bool(context), place, count) for key, turn_key, context, place, count in rows]


def sessions_to_redact(connection: sqlite3.Connection) -> list[str]:
    """Read which sessions hold something that was taken back."""
    return [session_id for (session_id,) in connection.execute("SELECT DISTINCT session_id FROM taken_back")]


def forget_taken_back(connection: sqlite3.Connection, keys: Iterable[str]) -> None:
    """Note that the transcript does not hold these any more."""
    connection.executemany("DELETE FROM taken_back WHERE key = ?", [(key,) for key in keys])


def move(connection: sqlite3.Connection, old: str, new: str) -> None:
    """Give all messages of one session to another."""
    connection.execute(
        "UPDATE inbox SET session_id = ?1, checksum = row_checksum(key, ?1, sender, text, is_context, details) "
        "WHERE session_id = ?2",
        (new, old),
    )
    connection.execute(
        "UPDATE taken_back SET session_id = ?1, checksum = row_checksum(key, ?1) WHERE session_id = ?2", (new, old)
    )


def check_unchanged(connection: sqlite3.Connection, messages: Iterable[Message]) -> None:
    """Make sure that messages still wait with the text that was read; those that were never admitted pass.

    Raises:
        MessageChanged: one was edited or settled meanwhile.
    """
    for message in messages:
        query = "SELECT session_id, text, outcome FROM inbox WHERE key = ?"
        row = connection.execute(query, (message.key,)).fetchone()
        if row is not None and row != (message.session_id, well_formed(message.text), None):
            raise MessageChanged(message.key)


def freeze(connection: sqlite3.Connection, turn_key: str, keys: Iterable[str]) -> None:
    """Give messages to a turn: from now on an edit does not change them."""
    connection.executemany(
        "UPDATE inbox SET turn_key = ? WHERE key = ? AND outcome IS NULL", [(turn_key, key) for key in keys]
    )


def settle(connection: sqlite3.Connection, keys: Sequence[str], outcome: str) -> int:
    """Settle messages that are not settled yet, and forget their text; returns how many there were."""
    if not keys:
        return 0
    return connection.executemany(
        "UPDATE inbox SET outcome = ?, text = NULL, details = NULL WHERE key = ? AND outcome IS NULL",
        [(outcome, key) for key in keys],
    ).rowcount


def settle_turn(connection: sqlite3.Connection, turn_key: str, outcome: str) -> None:
    """Settle the message that a turn answers, and those that its reply covers."""
    settle(connection, [turn_key], outcome)
    connection.execute(
        "UPDATE inbox SET outcome = 'covered', text = NULL, details = NULL WHERE turn_key = ? AND outcome IS NULL",
        (turn_key,),
    )


def settle_triggers(connection: sqlite3.Connection, outcome: str) -> int:
    """Settle all messages that wait for an answer; those that wait as context stay. Returns how many there were."""
    keys = connection.execute("SELECT key FROM inbox WHERE outcome IS NULL AND NOT is_context").fetchall()
    return settle(connection, [key for (key,) in keys], outcome)


def waiting(connection: sqlite3.Connection, session_id: str) -> list[Message]:
    """Read a session's unsettled messages, oldest first.

    Raises:
        ValueError: a row was altered.
    """
    rows = connection.execute(
        "SELECT key, session_id, sender, text, is_context, details, checksum, turn_key FROM inbox "
        "WHERE session_id = ? AND outcome IS NULL ORDER BY position",
        (session_id,),
    ).fetchall()
    messages = []
    for *fields, stored_checksum, turn_key in rows:
        key, session, sender, text, is_context, details = fields
        if stored_checksum != _checksum(*fields):
            raise ValueError(f"the inbox row of message {key} was altered")
        messages.append(Message(key, session, sender, text, bool(is_context), details, turn_key))
    return messages


def waiting_sessions(connection: sqlite3.Connection) -> list[str]:
    """Read which sessions have a message that waits for an answer, the longest waiting first."""
    rows: Sequence[tuple[str]] = connection.execute(
        "SELECT session_id FROM inbox WHERE outcome IS NULL AND NOT is_context "
        "GROUP BY session_id ORDER BY min(position)"
    ).fetchall()
    return [session_id for (session_id,) in rows]


def prune(connection: sqlite3.Connection, before_ms: int) -> int:
    """Delete settled rows from before `before_ms`; returns how many."""
    return connection.execute("DELETE FROM inbox WHERE outcome IS NOT NULL AND admitted_at < ?", (before_ms,)).rowcount
