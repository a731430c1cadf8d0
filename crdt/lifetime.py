"""The life of a store: opened as a whole, closed in order, and every change brought to its end.

A caller that is cancelled breaks no commit off, nor what a change has to do after it: it hears of the cancellation once
the outcome is known. What was begun is committed or refused as a whole, and no lock is left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from crdt.care.renewal import begin_anew
from crdt.database import Database, Unit, open_database
from crdt.errors import CrdtError, StoreClosed, StoreDamaged
from crdt.event_log import EventLog
from crdt.segments import Retention
from crdt.sessions import Sessions

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Lifetime:
    """What `Store` rests on: the database, the event log and the sessions while they are open."""

    def __init__(self, path: Path, sled_id: str | None, segment_events: int, retention: Retention) -> None:
        self.path = path
        self._asked_sled_id = sled_id
        self._segment_events = segment_events
        self._retention = retention
        self._open_database: Database | None = None
        self._event_log: EventLog
        self._sessions: Sessions
        self._housekeeping: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    def _clock_ms(self) -> int:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        database = await open_database(self.path, self._asked_sled_id, begin_anew)
        try:
            retention = self._retention
            self._event_log = EventLog(database, self._segment_events, retention, self._clock_ms, self._housekeep_soon)
            await self._event_log.open()
            self._sessions = Sessions(database, self._event_log, self._clock_ms)
        except BaseException:
            await database.close()
            raise
        self._open_database = database
        log.info("store_opened", sled=self.sled_id, head=self._event_log.head, oldest=self._event_log.oldest)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Finish what was begun, and give the database up. Closing twice does nothing."""
        database, self._open_database = self._open_database, None
        if database is not None:
            self._closing = asyncio.create_task(self._close(database), name="store-close")
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def _close(self, database: Database) -> None:
        try:
            await database.changes.until_none()
            await self._event_log.drain()
            if self._housekeeping is not None:
                await asyncio.wait({self._housekeeping})
        finally:
            await database.close()
        log.info("store_closed", sled=database.state.sled_id, commits=database.commits)

    @property
    def sled_id(self) -> str:
        """This node's id, kept in the database."""
        return self._database.state.sled_id

    @property
    def _database(self) -> Database:
        if self._open_database is None:
            raise StoreClosed(str(self.path))
        return self._open_database

    @property
    def _open_event_log(self) -> EventLog:
        if self._open_database is None:
            raise StoreClosed(str(self.path))
        return self._event_log

    @property
    def _open_sessions(self) -> Sessions:
        if self._open_database is None:
            raise StoreClosed(str(self.path))
        return self._sessions

    async def _unbroken(self, change: Coroutine[Any, Any, T]) -> T:
        """Run a change to its end even if the caller is cancelled in one of its commits."""
        return await self._database.changes.run(change)

    def _housekeep_soon(self) -> None:
        if self._housekeeping is None and self._open_database is not None:
            self._housekeeping = asyncio.create_task(self._housekeep_log(), name="store-housekeeping")

    async def _housekeep_log(self) -> None:
        try:
            while self._event_log.needs_housekeeping:
                await self._event_log.housekeep()
        except CrdtError as error:
            log.error("housekeeping_failed", error=str(error))
        finally:
            self._housekeeping = None

    async def _write(self, unit: Unit[T]) -> T:
        return await self._database.write(unit)

    async def _read(self, query: Unit[T]) -> T:
        try:
            return await self._database.read(query)
        except ValueError as error:
            raise StoreDamaged(str(self.path), str(error)) from error
