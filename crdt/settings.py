"""Small durable facts that the store does not look into: the sync token, the bot's device."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Final

from crdt.schema import checksum

CURSOR: Final = "cursor"
"""The token up to which messages were taken in."""
RESTORED_AT_MS: Final = "restored_at_ms"
"""When the database went on from an earlier state (Unix ms): what was said before is history, not to be answered."""
BACKUP_MADE_AT_MS: Final = "backup_made_at_ms"
"""Stands only in a backup: when it was made (Unix ms)."""


def read(connection: sqlite3.Connection, name: str) -> str | None:
    """Read one; `None` when it was never written.

    Raises:
        ValueError: the row was altered.
    """
    row = connection.execute("SELECT value, checksum FROM settings WHERE name = ?", (name,)).fetchone()
    if row is None:
        return None
    value: str = row[0]
    if row[1] != checksum(name, value):
        raise ValueError(f"the row of setting {name} was altered")
    return value


def write(connection: sqlite3.Connection, values: Mapping[str, str]) -> None:
    """Write some, over what they were."""
    connection.executemany(
        "INSERT INTO settings VALUES (?, ?, ?) "
        "ON CONFLICT DO UPDATE SET value = excluded.value, checksum = excluded.checksum",
        [(name, value, checksum(name, value)) for name, value in values.items()],
    )


def forget(connection: sqlite3.Connection, *names: str) -> None:
    """Remove some."""
    connection.executemany("DELETE FROM settings WHERE name = ?", [(name,) for name in names])
