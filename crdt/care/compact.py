"""Makes a database as small as what it holds: snapshots in place of ops, nothing that is too old, no free pages."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from crdt.care.files import check_is_there, translating
from crdt.care.progress import Progress, unwatched
from crdt.care.pruning import prune
from crdt.care.renewal import begin_anew
from crdt.care.verify import examine
from crdt.database import Database, open_database
from crdt.documents import Documents
from crdt.errors import StoreDamaged
from crdt.event_log import EventLog
from crdt.owner import read_witness
from crdt.segments import Retention


@dataclass(frozen=True, slots=True)
class Compacted:
    """What it came to; sizes in bytes."""

    documents: int
    pruned: int
    bytes_before: int
    bytes_after: int


async def compact_database(
    path: str | Path,
    *,
    segment_events: int,
    retention_events: int | None = None,
    retention_days: float | None = None,
    progress: Progress = unwatched,
) -> Compacted:
    """Compact a database that nobody has open, and that is there. All of it is verified before anything is deleted.

    Raises:
        StoreBusy: a process owns it.
        StoreDamaged: it is not whole; nothing was deleted.
        StoreFull, StoreNewer, StoreUnavailable: it can't be opened, or there is no room to write it anew.
    """
    retention = Retention(retention_events, retention_days)
    with translating(Path(path)):
        check_is_there(Path(path), read_witness(Path(path)))
    database = await open_database(Path(path), None, begin_anew)
    try:
        bytes_before = await database.read(_size)
        found = await database.read(lambda connection: examine(connection, progress))
        if found.problems:
            raise StoreDamaged(str(path), "; ".join(found.problems[:3]), "'musher db verify' tells all that is wrong")
        pruned = await database.write(lambda connection: prune(connection, _now_ms()))
        await EventLog(database, segment_events, retention, _now_ms).open()
        documents = await _compact_documents(database, progress)
        progress("writing the file anew", 0, 0)
        await database.vacuum()
        return Compacted(documents, pruned, bytes_before, await database.read(_size))
    finally:
        await database.close()


async def _compact_documents(database: Database, progress: Progress) -> int:
    query = "SELECT name FROM documents WHERE doc_id IN (SELECT DISTINCT doc_id FROM ops)"
    names = [name for (name,) in await database.read(lambda connection: connection.execute(query).fetchall())]
    documents = Documents(database, capacity=1)
    for done, name in enumerate(names):
        progress("compacting documents", done, len(names))
        await documents.compact(name)
    progress("compacting documents", len(names), len(names))
    return len(names)


def _size(connection: sqlite3.Connection) -> int:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    return int(pages * page_size)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
