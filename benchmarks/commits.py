"""The limits that the store stands beside: the smallest durable commit of SQLite, and the barest group commit."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figure import Round

PAYLOAD = b"x" * 100
"""Bytes of a row: about what the CRDT update of one event has."""

WAL_PAGES = 1_000
"""After so many SQLite moves the WAL into the database and writes it over from its beginning. Until then the file
grows, which costs more to sync. What runs for a while has a WAL of full size; so has what is measured here."""


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("PRAGMA synchronous = FULL").fetchall()
    connection.execute("CREATE TABLE row (id INTEGER PRIMARY KEY, data BLOB NOT NULL)")
    return connection


class RawCommits:
    """One row, one commit, in the caller's own thread: nothing durable can be cheaper with SQLite."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    @contextmanager
    def into(cls, path: Path) -> Iterator[RawCommits]:
        """Make the database, and its WAL of full size."""
        connection = _connect(path)
        try:
            raw = cls(connection)
            for _ in range(WAL_PAGES + 1):
                raw.one()
            yield raw
        finally:
            connection.close()

    def one(self) -> float:
        """Commit one row; returns the seconds that it took."""
        started = time.perf_counter()
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute("INSERT INTO row (data) VALUES (?)", (PAYLOAD,))
        self._connection.execute("COMMIT")
        return time.perf_counter() - started

    async def beside(self, work: Callable[[], Awaitable[float]], samples: int) -> Round:
        """Have something done, which tells the seconds that it took, in turns with a commit of one row."""
        took, commits = [], []
        for _ in range(samples):
            commits.append(self.one())
            took.append(await work())
        return took, commits


class GroupCommit:
    """Rows of all callers that wait at one moment, in one commit, in one thread beside the event loop; nothing else."""

    def __init__(self, path: Path) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._connection = _connect(path)
        self._waiting: list[asyncio.Future[None]] = []
        self._committer: asyncio.Task[None] | None = None

    async def one(self) -> None:
        """Have one row committed."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        if self._committer is None:
            self._committer = asyncio.create_task(self._commit_all())
        await done

    async def _commit_all(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, len(taken))
            for done in taken:
                done.set_result(None)
        self._committer = None

    def _commit(self, rows: int) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO row (data) VALUES (?)", [(PAYLOAD,)] * rows)
        self._connection.execute("COMMIT")

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
        self._connection.close()
