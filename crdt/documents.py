"""CRDT documents: opened on demand, changed synchronously, persisted op by op, and let go of when idle.

Rules for whoever changes this:
- A document is changed only by `Document.change`, in one pycrdt transaction, while its lock is held, and the lock is
  held until the commit of that change is known. Nothing is awaited inside the change.
- One change is one update is one op row. Ops of a document are numbered from 1 without holes; `documents.ops` repeats
  the newest number, so that a row lost at the end is noticed too.
- A change that could not be committed leaves memory with its document: `forget` it, and the next use reads the file.
- At most 100 inserts or updates go into one pycrdt transaction (10,000 inserts peak at 2 GB, 50,000 are killed).
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary, finalize

import structlog
from pycrdt import Array, Doc, Map, TransactionEvent

from crdt.database import Database, in_snapshot
from crdt.errors import StoreDamaged, translate
from crdt.schema import checksum, packed, unpacked

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_CHANGES_PER_TRANSACTION: Final = 100
COMPACT_AFTER_OPS: Final = 1000
"""Op rows of one document after which they are replaced by a snapshot: reading 1,000 costs about 20 ms."""

MAX_DOC_ID: Final = (1 << 31) - 1
"""The key of an op holds its document's number in the upper half of its 64 bits, of which the first is the sign."""

OF_DOCUMENT: Final = "op_id BETWEEN ?1 << 32 AND (?1 << 32) + 4294967295"
"""Picks the op rows of the document whose `doc_id` is the first parameter, by the key."""

LAYOUTS: Final[dict[str, dict[str, type[Any]]]] = {
    "log": {"events": Array},
    "session": {"meta": Map, "high_water": Map, "transcript": Array},
}
"""The root types of a document, by the first part of its name. Nothing is nested: replicas that both make the same
nested type lose one of the two."""


@dataclass(frozen=True, slots=True)
class Op:
    """One update of a document, ready to be stored."""

    document: Document
    seq: int
    data: bytes


class Document:
    """A pycrdt document in memory, with the number of the newest op that it holds.

    `memo` keeps what readers have worked out of its content; whoever writes that part of the content renews it.
    """

    def __init__(self, name: str, writer_id: int) -> None:
        self.name = name
        self.name_checksum = checksum(name)
        self.doc_id: int | None = None
        self.ops = 0
        self.snapshot_ops = 0
        self.memo: dict[str, Any] = {}
        self._doc: Doc[Any] = Doc(client_id=writer_id)
        layout = LAYOUTS[name.split("/", 1)[0]]
        self._roots: dict[str, Any] = {root: self._doc.get(root, type=kind) for root, kind in layout.items()}
        self._lengths: dict[str, int] = {}
        self._updates: list[bytes] = []
        self._observed = False

    def array(self, root: str) -> Array[str]:
        """Get a root array of JSON strings."""
        array: Array[str] = self._roots[root]
        return array

    def map(self, root: str) -> Map[str]:
        """Get a root map of strings."""
        found: Map[str] = self._roots[root]
        return found

    def length(self, root: str) -> int:
        """Count the entries of a root array."""
        length = self._lengths.get(root)
        if length is None:
            length = self._lengths[root] = len(self.array(root))
        return length

    # What pycrdt's `Array.extend` and `Map.__setitem__` do in the end, without asking of each text what it is.

    def extend(self, root: str, texts: Sequence[str]) -> None:
        """Append to a root array, inside a change."""
        end = self.length(root)
        insert = self._roots[root].integrated.insert
        with self._doc.transaction() as transaction:
            for place, text in enumerate(texts, end):
                insert(transaction._txn, place, text)
        self._lengths[root] = end + len(texts)

    def put(self, root: str, texts: Mapping[str, str]) -> None:
        """Set keys of a root map, inside a change."""
        insert = self._roots[root].integrated.insert
        with self._doc.transaction() as transaction:
            for key, text in texts.items():
                insert(transaction._txn, key, text)

    def texts(self, root: str) -> list[str]:
        """Read the whole of a root array: at once, which is ten times as fast as one by one."""
        texts: list[str] = json.loads(str(self._roots[root]))
        return texts

    def holds_the_same_as(self, other: Document) -> bool:
        """Compare the content of all roots: maps as values, since their JSON has no order; arrays as JSON, unread."""
        pairs = [(shared, other._roots[root]) for root, shared in self._roots.items()]
        return all(
            str(ours) == str(theirs) if isinstance(ours, Array) else ours.to_py() == theirs.to_py()
            for ours, theirs in pairs
        )

    def change(self, mutate: Callable[[], None]) -> Op:
        """Run `mutate` as one transaction and return its update. The caller must commit it or forget the document."""
        if not self._observed:
            self._observe()
        self._updates.clear()
        with self._doc.transaction():
            mutate()
        (data,) = self._updates
        self.ops += 1
        return Op(self, self.ops, data)

    def _observe(self) -> None:
        """Have the update of each transaction from now on, until this object is gone.

        pycrdt's document and the callback that it is given hold each other where Python's collector doesn't look.
        """
        collect = partial(_collect, self._updates)
        finalize(self, self._doc.unobserve, self._doc.observe(collect)).atexit = False
        self._observed = True

    def apply(self, updates: Sequence[bytes]) -> None:
        """Bring in updates that were stored before, in their order.

        Each in a transaction of its own: 4,000 took 14 ms so, and 400 ms all in one.
        """
        self._lengths.clear()
        self.memo.clear()
        for update in updates:
            self._doc.apply_update(update)

    def snapshot(self) -> bytes:
        """Encode the whole state as one update."""
        return self._doc.get_update()


def _collect(updates: list[bytes], event: TransactionEvent) -> None:
    updates.append(event.update)


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document's rows, verified: the snapshot (if any) covers the ops up to `snapshot_ops`."""

    doc_id: int
    snapshot: bytes | None
    snapshot_ops: int
    updates: list[bytes]


def read_document(connection: sqlite3.Connection, name: str) -> StoredDocument | None:
    """Read and verify a document's rows; `None` when there is no such document.

    Raises:
        ValueError: a row is missing or was altered; the message names it.
    """
    row = connection.execute("SELECT doc_id, ops, checksum FROM documents WHERE name = ?", (name,)).fetchone()
    if row is None:
        return None
    doc_id, ops, stored_checksum = row
    if stored_checksum != checksum(name, ops) or not 0 < doc_id <= MAX_DOC_ID:
        raise ValueError(f"the row of document {name} was altered")
    found = connection.execute(
        "SELECT ops, packed_data, checksum FROM snapshots WHERE doc_id = ?", (doc_id,)
    ).fetchone()
    snapshot_ops, snapshot = 0, None
    if found:
        snapshot_ops, data, snapshot_checksum = found
        if snapshot_checksum != checksum(name, snapshot_ops, data) or not isinstance(data, bytes):
            raise ValueError(f"the snapshot of document {name} was altered")
        try:
            snapshot = unpacked(data)
        except ValueError as error:
            raise ValueError(f"the snapshot of document {name} can't be unpacked: {error}") from error
    rows = connection.execute(
        f"SELECT seq, writer_id, data, checksum FROM ops WHERE {OF_DOCUMENT} ORDER BY op_id", (doc_id,)
    ).fetchall()
    updates = []
    for expected, (seq, writer_id, data, op_checksum) in enumerate(rows, snapshot_ops + 1):
        if seq != expected:
            raise ValueError(f"op {expected} of document {name} is missing")
        if op_checksum != checksum(name, seq, writer_id, data) or not isinstance(data, bytes):
            raise ValueError(f"op {seq} of document {name} was altered")
        updates.append(data)
    if snapshot_ops + len(updates) != ops:
        raise ValueError(f"op {snapshot_ops + len(updates) + 1} of document {name} is missing")
    return StoredDocument(doc_id, snapshot, snapshot_ops, updates)


def build_document(name: str, writer_id: int, stored: StoredDocument | None) -> Document:
    """Make the document in memory from its rows; an empty one when there are none."""
    document = Document(name, writer_id)
    if stored is not None:
        document.doc_id = stored.doc_id
        if stored.snapshot is not None:
            document.apply([stored.snapshot])
        document.apply(stored.updates)
        document.snapshot_ops = stored.snapshot_ops
        document.ops = stored.snapshot_ops + len(stored.updates)
    return document


def insert_ops(connection: sqlite3.Connection, writer_id: int, ops: Sequence[Op]) -> None:
    """Store updates, and make the rows of the documents that they begin."""
    for op in ops:
        document = op.document
        named = checksum(op.seq, after=document.name_checksum)
        row = (op.seq, named)
        if op.seq == 1:
            made = connection.execute(
                "INSERT INTO documents (ops, checksum, name) VALUES (?, ?, ?)", (*row, document.name)
            )
            document.doc_id = made.lastrowid
        else:
            connection.execute("UPDATE documents SET ops = ?, checksum = ? WHERE doc_id = ?", (*row, document.doc_id))
        assert document.doc_id is not None
        op_id = document.doc_id << 32 | op.seq
        op_checksum = checksum(writer_id, op.data, after=named)
        connection.execute(
            "INSERT INTO ops (op_id, writer_id, data, checksum) VALUES (?, ?, ?, ?)",
            (op_id, writer_id, op.data, op_checksum),
        )


def delete_document(connection: sqlite3.Connection, name: str) -> None:
    """Remove a document with all its rows."""
    for doc_id in connection.execute("SELECT doc_id FROM documents WHERE name = ?", (name,)).fetchall():
        connection.execute(f"DELETE FROM ops WHERE {OF_DOCUMENT}", doc_id)
        connection.execute("DELETE FROM snapshots WHERE doc_id = ?", doc_id)
        connection.execute("DELETE FROM documents WHERE doc_id = ?", doc_id)


class _KeyedLocks:
    """One lock for each key, forgotten when nobody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, key: str) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock


class Documents:
    """The documents in memory, the newest used last; at most `capacity` that nobody holds."""

    def __init__(self, database: Database, capacity: int) -> None:
        self._database = database
        self._capacity = capacity
        self._loaded: OrderedDict[str, Document] = OrderedDict()
        self._locks = _KeyedLocks()
        self._loads = _KeyedLocks()

    def lock(self, key: str) -> asyncio.Lock:
        """The lock of `key`, to be held alone. What is locked is a name of the caller's choice: all parts of a session
        share one."""
        return self._locks.of(key)

    async def get(self, name: str) -> Document:
        """Get the document, from memory or from its rows; an empty one when there are none.

        Raises:
            StoreDamaged: its rows are not what was written.
        """
        document = self._loaded.get(name)
        if document is None:
            async with self._loads.of(name):
                document = self._loaded.get(name)
                if document is None:
                    document = await self.load(name)
                    self._loaded[name] = document
        if name in self._loaded:
            self._loaded.move_to_end(name)
        self._evict(name)
        return document

    def forget(self, name: str) -> None:
        """Drop the document from memory; the next use reads what is committed."""
        self._loaded.pop(name, None)

    def adopt(self, document: Document) -> None:
        """Keep a document in memory that was made and committed elsewhere."""
        self._loaded[document.name] = document
        self._evict(document.name)

    async def load(self, name: str) -> Document:
        """Read the document from its rows, into no cache: for a caller that keeps it."""
        try:
            stored = await self._database.read(lambda connection: read_document(connection, name))
            return build_document(name, self._database.state.writer_id, stored)
        except ValueError as error:
            log.error("document_damaged", document=name, problem=str(error))
            raise StoreDamaged(str(self._database.path), str(error)) from error

    def _evict(self, keep: str) -> None:
        while len(self._loaded) > self._capacity:
            oldest = next(iter(self._loaded))
            if oldest == keep:
                return
            del self._loaded[oldest]

    async def compact(self, name: str) -> None:
        """Replace a document's op rows by one snapshot, off the write path, after showing that it holds the same.

        The snapshot is built from the rows, not from memory. Ops that arrive meanwhile stay as rows.
        """
        database = self._database
        try:
            covered, data = await _to_its_end(asyncio.to_thread(_snapshot_rows, database.path, name))
        except ValueError as error:
            raise StoreDamaged(str(database.path), str(error)) from error
        except sqlite3.Error as error:
            raise translate(database.path, error) from error
        if covered == 0:
            return

        def replace(connection: sqlite3.Connection) -> int:
            row = connection.execute("SELECT doc_id, ops FROM documents WHERE name = ?", (name,)).fetchone()
            if row is None or row[1] < covered:
                return 0
            newer = "SELECT 1 FROM snapshots WHERE doc_id = ? AND ops >= ?"
            if connection.execute(newer, (row[0], covered)).fetchone():
                return 0  # another compaction got further; the ops between the two are gone
            connection.execute(
                "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?)",
                (row[0], covered, data, checksum(name, covered, data)),
            )
            return connection.execute(f"DELETE FROM ops WHERE {OF_DOCUMENT} AND seq <= ?2", (row[0], covered)).rowcount

        deleted = await database.write(replace)
        document = self._loaded.get(name)
        if document is not None:
            document.snapshot_ops = covered
        log.info("document_compacted", document=name, ops=deleted, bytes=len(data))


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Wait for a thread even when cancelled: while it has the file open, closing the database leaves the WAL behind."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _snapshot_rows(path: Path, name: str) -> tuple[int, bytes]:
    """Make the data of a document's snapshot from its rows; how many ops it covers, 0 where none are new."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        stored = in_snapshot(connection, lambda snapshot: read_document(snapshot, name))
    finally:
        connection.close()
    if stored is None or not stored.updates:
        return 0, b""
    original = build_document(name, 0, stored)
    snapshot = original.snapshot()
    copy = Document(name, 0)
    copy.apply([snapshot])
    if not copy.holds_the_same_as(original):
        raise ValueError(f"a snapshot of document {name} would not hold what its ops hold")
    return original.ops, packed(snapshot)
