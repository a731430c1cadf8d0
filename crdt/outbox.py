"""The outbox: deliveries that were promised in the commit of what they belong to, sent afterwards, once each.

A delivery's id is its Matrix transaction id. An attempt is counted before it is made, the first one with the row where
it follows at once: a row with attempts and no outcome is in doubt.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from crdt.model import Delivery
from crdt.schema import checksum
from crdt.transcript import well_formed


def insert(connection: sqlite3.Connection, deliveries: Iterable[Delivery], now_ms: int) -> None:
    """Add deliveries behind those that wait; a known id is skipped."""
    for delivery in deliveries:
        content = well_formed(delivery.content)
        row = (delivery.delivery_id, delivery.session_id, delivery.event_type, content)
        first_at = delivery.first_attempt_at
        # As it will be read back, or the checksum would not be that of the row: SQLite makes a float of an integer.
        attempted = (delivery.attempts, first_at if first_at is None else float(first_at))
        connection.execute(
            "INSERT OR IGNORE INTO outbox "
            "(delivery_id, session_id, event_type, content, attempts, first_attempt_at, queued_at, checksum) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, *attempted, now_ms, checksum(*row, *attempted)),
        )


def due(connection: sqlite3.Connection) -> list[Delivery]:
    """Read the oldest unsent delivery of each session, the longest waiting first.

    Raises:
        ValueError: a row was altered.
    """
    rows = connection.execute(
        "SELECT delivery_id, session_id, event_type, content, checksum, attempts, first_attempt_at FROM outbox "
        "WHERE position IN (SELECT min(position) FROM outbox WHERE outcome IS NULL GROUP BY session_id) "
        "ORDER BY position"
    ).fetchall()
    deliveries = []
    for delivery_id, session_id, event_type, content, stored_checksum, attempts, first_attempt_at in rows:
        row = (delivery_id, session_id, event_type, content, attempts, first_attempt_at)
        if stored_checksum != checksum(*row):
            raise ValueError(f"the outbox row of delivery {delivery_id} was altered")
        deliveries.append(Delivery(delivery_id, session_id, content, event_type, attempts, first_attempt_at))
    return deliveries


def attempted(connection: sqlite3.Connection, delivery_id: str, now: float) -> None:
    """Count an attempt, before it is made."""
    first = "CAST(coalesce(first_attempt_at, ?1) AS REAL)"
    connection.execute(
        f"UPDATE outbox SET attempts = attempts + 1, first_attempt_at = {first}, "
        f"checksum = row_checksum(delivery_id, session_id, event_type, content, attempts + 1, {first}) "
        "WHERE delivery_id = ?2 AND outcome IS NULL",
        (now, delivery_id),
    )


def readdress(connection: sqlite3.Connection, delivery_id: str, session_id: str, content: str) -> None:
    """Give an open delivery to another session, as one that was never attempted."""
    connection.execute(
        "UPDATE outbox SET session_id = ?1, content = ?2, attempts = 0, first_attempt_at = NULL, "
        "checksum = row_checksum(delivery_id, ?1, event_type, ?2, 0, NULL) WHERE delivery_id = ?3 AND outcome IS NULL",
        (session_id, well_formed(content), delivery_id),
    )


def doubt(connection: sqlite3.Connection) -> int:
    """Take every open delivery for attempted, and that so long ago that no homeserver remembers it; returns how many.

    What a restored backup still holds as unsent may have been sent since; now each is first looked for in its room.
    """
    return connection.execute(
        "UPDATE outbox SET attempts = max(attempts, 1), first_attempt_at = 0.0, "
        "checksum = row_checksum(delivery_id, session_id, event_type, content, max(attempts, 1), 0.0) "
        "WHERE outcome IS NULL"
    ).rowcount


def settle(connection: sqlite3.Connection, delivery_id: str, outcome: str, event_id: str | None) -> bool:
    """End a delivery and forget its content; returns whether it was still open."""
    return (
        connection.execute(
            "UPDATE outbox SET outcome = ?, event_id = ?, content = NULL WHERE delivery_id = ? AND outcome IS NULL",
            (outcome, event_id, delivery_id),
        ).rowcount
        == 1
    )


def prune(connection: sqlite3.Connection, before_ms: int) -> int:
    """Delete ended rows from before `before_ms`; returns how many."""
    return connection.execute("DELETE FROM outbox WHERE outcome IS NOT NULL AND queued_at < ?", (before_ms,)).rowcount
