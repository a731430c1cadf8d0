"""Forgets what is settled and too old to come again."""

from __future__ import annotations

import sqlite3
from typing import Final

from crdt import inbox, outbox
from crdt.event_log import DEDUPE_DAYS

KEPT_MS: Final = DEDUPE_DAYS * 86_400_000


def prune(connection: sqlite3.Connection, now_ms: int) -> int:
    """Delete the rows of turns, messages and deliveries that were settled long ago; returns how many."""
    before_ms = now_ms - KEPT_MS
    turns = connection.execute("DELETE FROM turns WHERE outcome IS NOT NULL AND begun_at < ?", (before_ms,)).rowcount
    return turns + inbox.prune(connection, before_ms) + outbox.prune(connection, before_ms)
