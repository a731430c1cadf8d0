"""Counts and ages for whoever watches the store: read by a few short queries, never by a scan of the log."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crdt.database import Database
from crdt.errors import translate
from crdt.event_log import EventLog

_WAITING: Final = "SELECT count(*), min({since}) FROM {table} WHERE outcome IS NULL"


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits in an inbox or outbox: how much, and for how many seconds the oldest has; 0 when nothing does."""

    waiting: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """The state of a store at one commit; sizes in bytes.

    `inbox` counts the messages that wait for an answer, `context` those that wait to be folded into a turn. `in_doubt`
    of the deliveries in `outbox` were tried at least once. `failure` is why the newest commit failed, `None` when it
    did not.
    """

    inbox: Queue
    context: int
    outbox: Queue
    in_doubt: int
    commits: int
    head: int
    events: int
    segments: int
    sessions: int
    database_bytes: int
    wal_bytes: int
    free_bytes: int
    failure: str | None


async def measure(database: Database, event_log: EventLog) -> Statistics:
    """Read the statistics of an open database and of its files.

    Raises:
        StoreUnavailable: it can't be read.
    """
    now_ms = time.time_ns() // 1_000_000
    (
        inbox,
        inbox_since,
        context,
        outbox,
        outbox_since,
        in_doubt,
        commits,
        sessions,
    ) = await database.read(_counts)
    try:
        database_bytes, wal_bytes, free_bytes = await asyncio.to_thread(_sizes, database.path)
    except OSError as error:
        raise translate(database.path, error) from error
    return Statistics(
        inbox=Queue(inbox, _age_s(inbox_since, now_ms)),
        context=context,
        outbox=Queue(outbox, _age_s(outbox_since, now_ms)),
        in_doubt=in_doubt,
        commits=commits,
        head=event_log.head,
        events=event_log.head - event_log.oldest + 1,
        segments=event_log.segments,
        sessions=sessions,
        database_bytes=database_bytes,
        wal_bytes=wal_bytes,
        free_bytes=free_bytes,
        failure=database.failure,
    )


def _counts(connection: sqlite3.Connection) -> tuple[int, ...]:
    def row(query: str) -> tuple[int | None, ...]:
        found: tuple[int | None, ...] = connection.execute(query).fetchone()
        return found

    inbox = _WAITING.format(table="inbox", since="admitted_at")
    found = [
        *row(f"{inbox} AND NOT is_context"),
        *row("SELECT count(*) FROM inbox WHERE outcome IS NULL AND is_context"),
        *row(_WAITING.format(table="outbox", since="queued_at")),
        *row("SELECT count(*) FROM outbox WHERE outcome IS NULL AND attempts > 0"),
        *row("SELECT commits FROM state"),
        *row("SELECT count(*) FROM sessions"),
    ]
    return tuple(number or 0 for number in found)


def _age_s(since_ms: int, now_ms: int) -> float:
    # A clock that was set back must not make anything younger than nothing.
    return max(0.0, (now_ms - since_ms) / 1000) if since_ms else 0.0


def _sizes(path: Path) -> tuple[int, int, int]:
    filesystem = os.statvfs(path.parent)
    return _size(path), _size(path.with_name(f"{path.name}-wal")), filesystem.f_bavail * filesystem.f_frsize


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # the WAL comes with the first commit
        return 0
