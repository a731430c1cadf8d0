"""The database file: one writer with group commit, one reader, one owner.

Rules for whoever changes this:
- A transaction is one function that runs whole in the writer's thread. Nothing is awaited inside it.
- A commit is two crossings and no task: the thread is handed the whole batch, and hands the loop its outcomes.
- All callers that wait at the same moment share one commit; each of several has a savepoint of its own, so that one
  caller's error undoes only that caller's rows.
- A commit is acknowledged after SQLite has synced it (WAL + FULL). When a commit fails, the file decides: it is
  reopened, what it holds is forced to disk, and the commit counter tells whether the callers' rows are in it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
import structlog

from crdt import opening, schema
from crdt.changes import Changes, Outcome
from crdt.errors import StoreClosed, StoreUnavailable, translate
from crdt.gathering import Gathering
from crdt.in_place import check_in_place, files_of
from crdt.opening import BeginAnew
from crdt.owner import OwnerLock, Witness, file_itself, read_witness
from crdt.state import State, count_commit

log = structlog.get_logger(__name__)

T = TypeVar("T")
Unit = Callable[[sqlite3.Connection], T]
"""What one caller does inside a transaction; it runs in the writer's thread and may raise to undo its own rows."""

MAX_UNITS = 256
"""Callers that share one commit at the most: bounds how long the first of them waits for the last."""

# Refused statements. Any other error of SQLite may have ended the whole transaction.
_OF_THE_UNIT_ALONE = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.DataError)


class _Connection(aiosqlite.Connection):
    async def run(self, unit: Unit[T]) -> T:
        """Run a whole function in the connection's thread: one hop, and no await inside a transaction."""
        result: T = await self._execute(lambda: unit(self._conn))  # type: ignore[no-untyped-call]
        return result

    def post(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Have a function run in the connection's thread; it tells its outcome itself."""
        self._tx.put_nowait((None, partial(work, self._conn)))


@dataclass(slots=True)
class _Waiting:
    unit: Unit[Any]
    settle: Callable[[Any], None]


class Database:
    """An open database file. Made by `open_database`."""

    def __init__(self, path: Path, lock: OwnerLock, state: State, writer: _Connection, reader: _Connection) -> None:
        self.path = path
        self.state = state
        self.commits = state.commits
        self.failure: str | None = None
        """Why the newest commit failed; `None` when it did not."""
        self.changes = Changes()
        self._lock = lock
        self._files = files_of(path)
        self._writer: _Connection | None = writer
        self._reader = reader
        self._units = Gathering(self._begin)
        self._recovery: asyncio.Task[None] | None = None
        self._closed = False

    async def write(self, unit: Unit[T]) -> T:
        """Run `unit` in a transaction and return what it returns, after the commit is on the disk.

        Raises:
            StoreFull, StoreUnavailable: the commit failed; nothing of the unit is stored.
            Exception: whatever `unit` raised; its rows are undone, others' are not.
        """
        outcome: Outcome[T] = Outcome(asyncio.get_running_loop())
        self.submit(unit, outcome.settle)
        return await self.changes.committed(outcome)

    def submit(self, unit: Unit[Any], settle: Callable[[Any], None], *, gathered: bool = False) -> None:
        """Do as `write` does for somebody who does not wait: `settle` is given the result, or the exception.

        `gathered` says that the unit holds the work of all who asked at this moment.
        """
        if self._closed:
            raise StoreClosed(str(self.path))
        self._units.add(_Waiting(unit, settle), gathered=gathered)

    async def read(self, query: Unit[T]) -> T:
        """Run a query on the reader's connection; it sees what is committed and never waits for the writer."""
        if self._closed:
            raise StoreClosed(str(self.path))
        try:
            return await self._reader.run(lambda connection: in_snapshot(connection, query))
        except sqlite3.Error as error:
            raise translate(self.path, error) from error

    async def vacuum(self) -> None:
        """Write the file anew, without its free pages. Nothing else may be under way."""
        assert self._writer is not None
        try:
            await self._writer.run(_vacuum)
        except sqlite3.Error as error:
            raise translate(self.path, error) from error

    async def close(self) -> None:
        """Commit what waits, move the WAL into the file, and give the database up."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._units.until_idle()
            await self._reader.close()
            if self._writer is not None:
                await self._writer.close()
        finally:
            self._lock.release()

    def _begin(self, units: list[_Waiting]) -> None:
        batch = units[:MAX_UNITS]
        del units[:MAX_UNITS]
        if self._writer is None:
            self._recovery = asyncio.create_task(self._begin_reopened(batch), name="reopen-and-commit")
        else:
            self._writer.post(partial(self._commit, asyncio.get_running_loop(), batch))

    async def _begin_reopened(self, batch: list[_Waiting]) -> None:
        try:
            self.commits = await self._reopen()
        except BaseException as error:  # whatever it is, each caller hears of it; none waits for ever
            self._end_unknown(batch, error)
            return
        assert self._writer is not None
        self._writer.post(partial(self._commit, asyncio.get_running_loop(), batch))

    def _commit(self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting], connection: sqlite3.Connection) -> None:
        """Commit a batch, in the writer's thread; each outcome is what the unit returned, or what it raised."""
        outcomes: list[Any] = []
        error: BaseException | None = None
        committed = 0
        try:
            committed = self._transact(connection, batch, outcomes)
        except BaseException as raised:  # whatever it is, the loop's side tells each caller; none waits for ever
            error = raised
        loop.call_soon_threadsafe(self._committed, batch, outcomes, committed, error)

    def _committed(
        self, batch: list[_Waiting], outcomes: list[Any], committed: int, error: BaseException | None
    ) -> None:
        if error is None:
            self.commits = committed
            self._end(batch, outcomes, None)
        elif isinstance(error, sqlite3.Error):
            self._recovery = asyncio.create_task(self._recover(batch, outcomes, error), name="recover-commit")
        else:
            self._end(batch, [error] * len(batch), str(error))

    async def _recover(self, batch: list[_Waiting], outcomes: list[Any], error: sqlite3.Error) -> None:
        """After a failed commit: ask the file whether it holds the batch."""
        try:
            stored = await self._reopen()
        except BaseException as worse:  # whatever it is, each caller hears of it; none waits for ever
            self._end_unknown(batch, worse)
            return
        is_stored = stored > self.commits and len(outcomes) == len(batch)
        self.commits = stored
        if is_stored:
            log.warning("commit_confirmed_after_error", commits=stored, error=str(error))
            self._end(batch, outcomes, None)
        else:
            failure = translate(self.path, error)
            failure.__cause__ = error
            self._end(batch, [failure] * len(batch), str(failure))

    def _end_unknown(self, batch: list[_Waiting], error: BaseException) -> None:
        """Tell the callers of a commit of which nothing can be found out; also when the event loop cancels the search,
        since they themselves can't be cancelled."""
        told = error
        if not isinstance(error, Exception):
            told = StoreUnavailable(str(self.path), "was given up before a commit was confirmed", "open it again")
        self._end(batch, [told] * len(batch), str(told))
        if told is not error:
            raise error

    def _end(self, batch: list[_Waiting], outcomes: list[Any], failure: str | None) -> None:
        self.failure = failure
        broken: BaseException | None = None
        for waiting, outcome in zip(batch, outcomes, strict=True):
            try:
                waiting.settle(outcome)
            except BaseException as error:  # the others are told all the same
                broken = error
        self._units.ended()
        if broken is not None:
            raise broken

    def _transact(self, connection: sqlite3.Connection, batch: list[_Waiting], outcomes: list[Any]) -> int:
        check_in_place(self.path, self._files)
        connection.execute("BEGIN IMMEDIATE")
        run = _run_alone if len(batch) == 1 else _run_in_savepoint
        for waiting in batch:
            outcomes.append(run(connection, waiting.unit))
        if all(isinstance(outcome, BaseException) for outcome in outcomes):
            connection.execute("ROLLBACK")
            return self.commits
        commits = self.commits + 1
        count_commit(connection, self.state, commits)
        connection.execute("COMMIT")
        try:
            self._lock.write_witness(Witness(commits, self.state.database_id))
        except OSError as error:  # the commit stands; only the check at the next opening knows less
            log.warning("witness_not_written", path=str(self.path), error=str(error))
        return commits

    async def _reopen(self) -> int:
        """After a failed commit: read the file anew and return the number of the newest commit that it holds.

        The checkpoint writes what the WAL holds a second time and syncs it: after a failed fsync nothing less shows
        that a commit which can be read will also survive.
        """
        check_in_place(self.path, self._files)
        broken, self._writer = self._writer, None
        if broken is not None:
            await broken.close()
        try:
            writer = await _connect(self.path, lambda connection: None)
        except sqlite3.Error as error:
            raise translate(self.path, error) from error
        try:
            stored: int = await writer.run(_force_to_disk)
        except BaseException as error:  # whatever it is, the connection is not left open
            await writer.close()
            if isinstance(error, sqlite3.Error):
                raise translate(self.path, error) from error
            raise
        self._writer = writer
        return stored


def in_snapshot(connection: sqlite3.Connection, query: Unit[T]) -> T:
    """Run a query in one read transaction: all of its SELECTs see the same commit."""
    connection.execute("BEGIN")
    try:
        return query(connection)
    finally:
        connection.rollback()  # unlike the statement, no error of its own where SQLite has ended the transaction by one


def _run_alone(connection: sqlite3.Connection, unit: Unit[T]) -> T | BaseException:
    """Run the only unit of a transaction; its error, which the caller answers by a rollback, is the outcome."""
    try:
        return unit(connection)
    except Exception as error:  # a caller's error is that caller's outcome
        if isinstance(error, sqlite3.Error) and not isinstance(error, _OF_THE_UNIT_ALONE):
            raise
        return error


def _run_in_savepoint(connection: sqlite3.Connection, unit: Unit[T]) -> T | BaseException:
    """Run one unit of several; its error undoes its own rows, and the other callers commit."""
    connection.execute("SAVEPOINT unit")
    outcome = _run_alone(connection, unit)
    if isinstance(outcome, BaseException):
        connection.execute("ROLLBACK TO unit")
    connection.execute("RELEASE unit")
    return outcome


def _vacuum(connection: sqlite3.Connection) -> None:
    connection.execute("VACUUM")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _force_to_disk(connection: sqlite3.Connection) -> int:
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return int(connection.execute("SELECT commits FROM state").fetchone()[0])


async def _connect(path: Path, check: Unit[None], *, read_only: bool = False) -> _Connection:
    def connector() -> sqlite3.Connection:
        mode = "ro" if read_only else "rw"
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
        )
        try:
            check(connection)
            schema.prepare(connection)
            for pragma in schema.PRAGMAS[3:] if read_only else schema.PRAGMAS:
                connection.execute(pragma).fetchall()
        except BaseException:
            connection.close()
            raise
        return connection

    connection = _Connection(connector, iter_chunk_size=64)
    try:
        await connection
    except BaseException:  # its thread is ending; let it, or it reports to a loop that is gone
        await asyncio.to_thread(connection._thread.join)
        raise
    return connection


async def open_database(path: Path, sled_id: str | None, begin_anew: BeginAnew | None = None) -> Database:
    """Open the database at `path`, or make it; the process owns it until it is closed.

    A database that was put in the place of another, and a backup that was not restored by `musher db restore`, is
    given to `begin_anew`, in one commit.

    Raises:
        StoreBusy, StoreDamaged, StoreNewer, SledMismatch, StoreUnavailable: nothing was changed.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = OwnerLock.acquire(path)
    except OSError as error:
        raise translate(path, error) from error
    try:
        # A process may go to another folder while the database is open.
        return await _open_owned(file_itself(path).absolute(), lock, sled_id, begin_anew)
    except BaseException as error:
        lock.release()
        if isinstance(error, sqlite3.Error | OSError | UnicodeDecodeError):
            raise translate(path, error) from error
        raise


async def _open_owned(path: Path, lock: OwnerLock, sled_id: str | None, begin_anew: BeginAnew | None) -> Database:
    opening.check_file(path)
    witness = lock.read_witness()
    opening.check_presence(path, witness)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    opening.check_only_name(path)
    # Looked at before it is opened for writing, which would move what is left of a broken WAL into the file.
    # But what a death broke off before there was a WAL, only a writer can undo: SQLite does it before the first read.
    untouched = not path.with_name(f"{path.name}-journal").exists()
    async with AsyncExitStack() as opened:
        reader = await _connect(path, lambda looker: opening.inspect(looker, path, witness), read_only=untouched)
        if not untouched:
            await reader.close()
            reader = await _connect(path, lambda connection: None, read_only=True)
        opened.push_async_callback(reader.close)
        writer = await _connect(path, lambda connection: opening.check_schema(connection, path))
        opened.push_async_callback(writer.close)
        state = await writer.run(lambda connection: opening.prepare(connection, path, sled_id, witness, begin_anew))
        # From its first read on, the reader keeps the WAL, which the last to leave would delete.
        await reader.run(lambda connection: connection.execute("SELECT 1 FROM state").fetchall())
        lock.write_witness(Witness(state.commits, state.database_id))
        opened.pop_all()
    return Database(path, lock, state, writer, reader)


async def open_read_only(path: Path) -> tuple[_Connection, State]:
    """Open an existing database for reading beside its owner.

    Raises:
        StoreDamaged, StoreNewer, StoreUnavailable: there is no such database, or it can't be read.
    """
    witness = read_witness(path)
    try:
        opening.check_presence(path, witness)
        if not path.exists():  # noqa: ASYNC240 - one stat of a local file
            raise StoreUnavailable(str(path), "does not exist", "check store.path, or start 'musher run' first")
        opening.check_file_to_read(path)
        connection = await _connect(path, lambda connection: opening.check_schema(connection, path), read_only=True)
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
        raise translate(path, error) from error
    try:
        state = await connection.run(lambda connection: opening.read_current_state(connection, path, witness))
    except BaseException as error:
        await connection.close()
        if isinstance(error, sqlite3.Error | UnicodeDecodeError):
            raise translate(path, error) from error
        raise
    return connection, state
