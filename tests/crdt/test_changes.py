"""Changes: cancellations that come in a commit, also where the event loop itself comes to its end."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from crdt import CrdtError, Store
from crdt.changes import Changes, Outcome
from crdt.database import Database
from crdt.documents import StoredDocument, read_document
from tests.crdt.breakage import fail_after_commit
from tests.crdt.samples import ROOM, event, events


async def in_a_commit(outcome: Outcome[int], after: BaseException | None = None) -> tuple[asyncio.Task[int], list[str]]:
    """A change that waits for its commit."""
    changes, heard = Changes(), []

    async def change() -> int:
        result = await changes.committed(outcome)
        heard.append("committed")
        if after is not None:
            raise after
        return result

    task = asyncio.create_task(changes.run(change()))
    await asyncio.sleep(0)
    return task, heard


async def test_a_cancellation_waits_for_the_commit_and_is_raised_in_the_end() -> None:
    outcome: Outcome[int] = Outcome(asyncio.get_running_loop())
    task, heard = await in_a_commit(outcome)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    outcome.settle(1)
    await asyncio.wait([task])
    assert heard == ["committed"]
    assert task.cancelled()


@pytest.mark.parametrize("refused", [CrdtError("refused"), ZeroDivisionError()])
async def test_a_cancelled_change_that_is_refused_ends_as_cancelled(refused: Exception) -> None:
    outcome: Outcome[int] = Outcome(asyncio.get_running_loop())
    task, _ = await in_a_commit(outcome, after=refused)
    task.cancel()
    outcome.settle(1)
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_task_goes_on_as_soon_as_its_outcome_is_told_but_not_inside_another_task() -> None:
    loop = asyncio.get_running_loop()
    outcome: Outcome[int] = Outcome(loop)
    task, heard = await in_a_commit(outcome)

    def settle() -> None:
        outcome.settle(1)
        heard.append("settled")

    loop.call_soon(settle)
    await task
    assert heard == ["committed", "settled"]

    outcome = Outcome(loop)
    task, heard = await in_a_commit(outcome)
    settle()
    assert heard == ["settled"], "this test is a task, too"
    assert await task == 1


def test_an_interrupt_is_not_taken_for_a_cancellation_that_was_put_off() -> None:
    async def interrupted() -> None:
        outcome: Outcome[int] = Outcome(asyncio.get_running_loop())
        task, _ = await in_a_commit(outcome, after=KeyboardInterrupt())
        task.cancel()
        outcome.settle(1)
        await asyncio.wait([task])

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(interrupted())


async def test_a_timeout_ends_as_a_timeout_and_leaves_no_cancellation_behind(store: Store) -> None:
    await store.begin_turn(ROOM, "$1", "hello")  # from here on a turn waits for its commit only
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await store.begin_turn(ROOM, "$2", "hello")
    await asyncio.sleep(0)
    assert (await store.begin_turn(ROOM, "$2", "hello")).attempt == 2


def test_a_loop_that_ends_while_a_failed_commit_is_looked_into_ends(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[BaseException] = []
    connections: list[aiosqlite.Connection] = []
    looking = asyncio.Event()

    async def reopen(database: Database) -> int:
        looking.set()
        await asyncio.Event().wait()
        return 0

    async def write(store: Store) -> None:
        try:
            await store.write_settings({"device": "ABC"})
        except BaseException as error:
            told.append(error)
            raise

    async def left_open() -> None:
        store = await Store.open(path).__aenter__()
        monkeypatch.setattr(Database, "_reopen", reopen)
        fail_after_commit(store)
        database = store._database
        assert database._writer is not None
        connections.extend((database._reader, database._writer))
        writing = asyncio.create_task(write(store))
        await looking.wait()
        assert not writing.done()

    async def close() -> None:
        for connection in connections:
            await connection.close()

    asyncio.run(left_open())
    asyncio.run(close())
    assert [type(error) for error in told] == [asyncio.CancelledError]


async def test_closing_waits_for_a_compaction_whose_caller_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def read(*arguments: Any) -> StoredDocument | None:
        reading.set()
        go_on.wait(30)
        return read_document(*arguments)

    monkeypatch.setattr("crdt.lifetime.Lifetime._housekeep_soon", lambda self: None)
    async with Store.open(path, segment_events=5) as store:
        await store.append_events(events(1, 5))
        monkeypatch.setattr("crdt.documents.read_document", read)
        housekeeping = asyncio.create_task(store.housekeep())
        assert await asyncio.to_thread(reading.wait, 30)
        housekeeping.cancel()
        closing = asyncio.create_task(store.close())
        done, _ = await asyncio.wait({closing}, timeout=0.5)
        assert not done
        go_on.set()
        await closing
        assert housekeeping.cancelled()
    assert not path.with_name("musher.db-wal").exists()
    monkeypatch.undo()
    async with Store.open(path) as store:
        assert await store.append_event(event(6)) == 6


async def test_a_caller_that_breaks_when_it_is_told_keeps_nobody_from_being_told(store: Store) -> None:
    told: list[object] = []

    def break_down(outcome: object) -> None:
        raise ZeroDivisionError

    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(type(context.get("exception"))))
    store._database.submit(lambda connection: 1, break_down)
    store._database.submit(lambda connection: 2, told.append)
    await store.write_settings({"device": "ABC"})
    assert await store.append_event(event(1)) == 1
    assert told == [2, ZeroDivisionError]
