"""Documents: ops and snapshots, memory that follows the file, compaction that verifies."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crdt import StoreDamaged, StoreUnavailable, transcript
from crdt.database import Database, open_database
from crdt.documents import Document, Documents, Op, StoredDocument, delete_document, insert_ops, read_document
from tests.crdt.samples import look

NAME = "log/build-1/1"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    """An open database."""
    opened = await open_database(path, "build-1")
    yield opened
    await opened.close()


@pytest.fixture
def documents(database: Database) -> Documents:
    """At most two documents in memory."""
    return Documents(database, capacity=2)


async def append(documents: Documents, database: Database, name: str, *texts: str) -> None:
    """Append texts to a document's array, one op each."""
    document = await documents.get(name)
    for text in texts:
        await store(database, document.change(lambda text=text: document.array("events").append(text)))  # type: ignore[misc]


async def store(database: Database, op: Op) -> None:
    await database.write(lambda connection: insert_ops(connection, database.state.writer_id, [op]))


async def contents(documents: Documents, name: str = NAME) -> object:
    return (await documents.get(name)).texts("events")


async def test_a_document_that_was_never_written_is_empty(documents: Documents) -> None:
    assert (await documents.get(NAME)).ops == 0
    assert await contents(documents) == []


async def test_a_document_comes_back_from_its_rows(documents: Documents, database: Database) -> None:
    await append(documents, database, NAME, "a", "b", "c")
    documents.forget(NAME)
    assert await contents(documents) == ["a", "b", "c"]
    assert (await documents.get(NAME)).ops == 3


async def test_documents_out_of_memory_come_back_the_same(documents: Documents, database: Database) -> None:
    for number in range(5):
        await append(documents, database, f"log/build-1/{number}", str(number))
    assert len(documents._loaded) == 2
    for number in range(5):
        assert await contents(documents, f"log/build-1/{number}") == [str(number)]


async def test_the_document_used_last_stays_in_memory(documents: Documents) -> None:
    first, _ = await documents.get("log/a/1"), await documents.get("log/b/1")
    assert await documents.get("log/a/1") is first
    await documents.get("log/c/1")
    assert await documents.get("log/a/1") is first


async def test_tasks_that_ask_together_get_one_document(documents: Documents) -> None:
    found = await asyncio.gather(*(documents.get(NAME) for _ in range(10)))
    assert all(document is found[0] for document in found)


async def test_a_change_is_one_update_and_a_failed_change_leaves_no_op() -> None:
    document = Document(NAME, 1)
    op = document.change(lambda: document.array("events").extend(["a", "b"]))
    assert (op.document, op.seq) == (document, 1)
    copy = Document(NAME, 2)
    copy.apply([op.data])
    assert copy.texts("events") == ["a", "b"]

    def broken() -> None:
        document.array("events").append("c")
        raise LookupError

    with pytest.raises(LookupError):
        document.change(broken)
    assert document.ops == 1


async def test_more_updates_than_one_transaction_takes_are_replayed_in_order() -> None:
    document, copy = Document(NAME, 1), Document(NAME, 2)
    updates = [document.change(lambda n=n: document.array("events").append(str(n))).data for n in range(250)]  # type: ignore[misc]
    copy.apply(updates)
    assert copy.texts("events") == document.texts("events") == [str(n) for n in range(250)]
    snapshot = Document(NAME, 3)
    snapshot.apply([document.snapshot()])
    assert snapshot.holds_the_same_as(document)
    snapshot.change(lambda: snapshot.extend("events", ["one more"]))
    assert not snapshot.holds_the_same_as(document)


async def test_a_lock_is_held_by_one_and_forgotten_by_all(documents: Documents) -> None:
    order: list[str] = []

    async def hold(name: str) -> None:
        async with documents.lock("!room"):
            order.append(name)
            await asyncio.sleep(0)
            order.append(name)

    async with documents.lock("!other"):
        tasks = [asyncio.create_task(hold(name)) for name in "abc"]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.wait(tasks)
    assert order == ["a", "a", "c", "c"]
    del tasks  # the cancelled one remembers what it waited for
    gc.collect()
    assert not documents._locks._locks


async def test_compaction_replaces_ops_by_a_snapshot_that_holds_the_same(
    documents: Documents, database: Database
) -> None:
    await append(documents, database, NAME, "a", "b", "c")
    await documents.compact(NAME)
    assert look(database.path, "SELECT count(*) FROM ops") == [(0,)]
    assert (await documents.get(NAME)).snapshot_ops == 3
    await append(documents, database, NAME, "d")
    documents.forget(NAME)
    assert await contents(documents) == ["a", "b", "c", "d"]
    document = await documents.get(NAME)
    assert (document.ops, document.snapshot_ops) == (4, 3)
    await documents.compact(NAME)
    await documents.compact(NAME)
    documents.forget(NAME)
    assert await contents(documents) == ["a", "b", "c", "d"]


async def test_compacting_what_is_not_there_does_nothing(documents: Documents, database: Database) -> None:
    await documents.compact(NAME)
    assert look(database.path, "SELECT count(*) FROM snapshots") == [(0,)]


async def test_ops_that_arrive_during_a_compaction_stay(
    documents: Documents, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(documents, database, NAME, "a", "b")
    covered = await snapshot_rows(database)
    await append(documents, database, NAME, "c")
    monkeypatch.setattr("crdt.documents._snapshot_rows", lambda path, name: covered)
    await documents.compact(NAME)
    documents.forget(NAME)
    assert await contents(documents) == ["a", "b", "c"]


async def snapshot_rows(database: Database) -> tuple[int, bytes]:
    from crdt.documents import _snapshot_rows

    return await asyncio.to_thread(_snapshot_rows, database.path, NAME)


async def test_a_compaction_that_was_overtaken_by_another_changes_nothing(
    documents: Documents, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(documents, database, NAME, "a", "b")
    early = await snapshot_rows(database)
    await append(documents, database, NAME, "c")
    await documents.compact(NAME)
    monkeypatch.setattr("crdt.documents._snapshot_rows", lambda path, name: early)
    await documents.compact(NAME)
    documents.forget(NAME)
    assert await contents(documents) == ["a", "b", "c"]


async def test_a_document_deleted_during_its_compaction_stays_deleted(
    documents: Documents, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(documents, database, NAME, "a")
    covered = await snapshot_rows(database)
    await database.write(lambda connection: delete_document(connection, NAME))
    monkeypatch.setattr("crdt.documents._snapshot_rows", lambda path, name: covered)
    await documents.compact(NAME)
    for table in ("documents", "ops", "snapshots"):
        assert look(database.path, f"SELECT count(*) FROM {table}") == [(0,)]


async def test_a_snapshot_that_would_lose_something_deletes_nothing(
    documents: Documents, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(documents, database, NAME, "a", "b")
    monkeypatch.setattr(Document, "snapshot", lambda document: Document(NAME, 0)._doc.get_update())
    with pytest.raises(StoreDamaged, match="would not hold"):
        await documents.compact(NAME)
    assert look(database.path, "SELECT count(*) FROM ops") == [(2,)]


async def test_a_disk_that_fails_during_a_compaction_is_named(
    documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, name: str) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr("crdt.documents._snapshot_rows", fail)
    with pytest.raises(StoreUnavailable):
        await documents.compact(NAME)


async def test_bytes_that_are_no_update_are_damage(database: Database, documents: Documents) -> None:
    await store(database, Op(Document(NAME, 1), 1, b"\xff\xff\xff"))
    with pytest.raises(StoreDamaged):
        await documents.get(NAME)


async def test_the_rows_of_a_document_are_read_as_they_were_written(database: Database, documents: Documents) -> None:
    await append(documents, database, NAME, "a")
    found = await database.read(lambda connection: read_document(connection, NAME))
    assert isinstance(found, StoredDocument)
    assert (found.snapshot, found.snapshot_ops, len(found.updates)) == (None, 0, 1)
    assert await database.read(lambda connection: read_document(connection, "log/none/1")) is None


async def test_what_readers_worked_out_is_forgotten_with_a_foreign_update() -> None:
    ours, foreign = Document("session/!r/1", 1), Document("session/!r/1", 2)
    ours.change(lambda: transcript.write_high_water(ours, "a", {"a": 1}))
    assert transcript.read_high_water(ours) == {"a": 1}
    update = foreign.change(lambda: transcript.write_high_water(foreign, "b", {"b": 50}))
    ours.apply([update.data])
    ours.change(lambda: transcript.write_high_water(ours, "a", {"a": 2}))
    assert transcript.read_high_water(ours) == {"a": 2, "b": 50}
