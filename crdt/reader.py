"""Reading a database beside the process that owns it: for commands that look and never change."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from crdt import settings, transcript
from crdt.database import in_snapshot, open_read_only
from crdt.documents import Document, build_document, read_document
from crdt.errors import StoreClosed, StoreDamaged, translate
from crdt.log_entries import decode_event, document_name
from crdt.model import LlmSessionView, RecordedEvent, TranscriptEntry
from crdt.segments import read_segments
from crdt.session_rows import SessionRow, read_session_row

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """A session in a list; `turns` counts the completed ones."""

    session_id: str
    persona_name: str
    scope: str
    high_water: dict[str, int]
    turns: int


class StoreReader:
    """A read-only view of a store. Use it as `async with StoreReader.open(path) as reader`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: Any = None
        self._sled_id = ""

    @classmethod
    def open(cls, path: str | Path) -> StoreReader:
        """Name the database to read.

        Raises (on entering):
            StoreDamaged, StoreNewer, StoreUnavailable: there is no such database, or it can't be read.
        """
        return cls(Path(path))

    async def __aenter__(self) -> StoreReader:
        self._connection, state = await open_read_only(self._path)
        self._sled_id = state.sled_id
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection, self._connection = self._connection, None
        await connection.close()

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            raise StoreClosed(str(self._path))
        try:
            result: T = await self._connection.run(lambda connection: in_snapshot(connection, query))
        except ValueError as error:
            raise StoreDamaged(str(self._path), str(error)) from error
        except sqlite3.Error as error:
            raise translate(self._path, error) from error
        return result

    async def read_events(self, after: int = 0, limit: int = 1000) -> list[RecordedEvent]:
        """Read at most `limit` events with a seq above `after`, oldest first."""

        def query(connection: sqlite3.Connection) -> list[RecordedEvent]:
            events: list[RecordedEvent] = []
            for segment in read_segments(connection, self._sled_id):
                if (segment.sealed_at is None or segment.last_seq > after) and len(events) < limit:
                    document = _document(connection, document_name(self._sled_id, segment.number))
                    first = max(after + 1 - segment.first_seq, 0)
                    texts = document.texts("events")[first:]
                    events.extend(decode_event(self._sled_id, text) for text in texts)
            return events[:limit]

        return await self._read(query)

    async def read_setting(self, name: str) -> str | None:
        """Read one durable fact of the bot; `None` when it was never written."""
        return await self._read(lambda connection: settings.read(connection, name))

    async def list_sessions(self) -> list[SessionSummary]:
        """Read all sessions, by id."""

        def query(connection: sqlite3.Connection) -> list[SessionSummary]:
            rows = connection.execute("SELECT session_id FROM sessions ORDER BY session_id").fetchall()
            names = ("session/", "session0")  # "0" is what follows "/"
            query = "SELECT count(*) FROM documents WHERE name > ? AND name < ?"
            (documents,) = connection.execute(query, names).fetchone()
            if documents != len(rows):
                raise ValueError(f"there are {documents} documents of sessions, but rows of {len(rows)} sessions")
            return [summary for (session_id,) in rows if (summary := _summary(connection, session_id))]

        return await self._read(query)

    async def read_session(self, session_id: str) -> SessionSummary | None:
        """Read one session; `None` when there is none."""
        return await self._read(lambda connection: _summary(connection, session_id))

    async def read_llm_session(self, session_id: str) -> LlmSessionView | None:
        """Read one session as the store shows it; `None` when there is none."""
        found = await self.read_session(session_id)
        return LlmSessionView(session_id, found.persona_name, found.scope, found.high_water) if found else None

    async def read_transcript(self, session_id: str) -> list[TranscriptEntry]:
        """Read the entries that the session keeps, oldest first."""

        def query(connection: sqlite3.Connection) -> list[TranscriptEntry]:
            document = _session_document(connection, session_id)
            return transcript.read_entries(document) if document else []

        return await self._read(query)


def _row(connection: sqlite3.Connection, session_id: str) -> SessionRow | None:
    # A name that can't be stored, as of an argument that is not UTF-8, is no session's.
    return read_session_row(connection, session_id) if session_id == transcript.well_formed(session_id) else None


def _document(connection: sqlite3.Connection, name: str) -> Document:
    return build_document(name, 0, read_document(connection, name))


def _session_document(connection: sqlite3.Connection, session_id: str) -> Document | None:
    row = _row(connection, session_id)
    if row is None:
        return None
    document = _document(connection, transcript.document_name(session_id, row.part))
    if document.ops == 0:
        raise ValueError(f"document {document.name} is missing")
    return document


def _summary(connection: sqlite3.Connection, session_id: str) -> SessionSummary | None:
    row = _row(connection, session_id)
    document = _session_document(connection, session_id)
    if row is None or document is None:
        return None
    view = transcript.read_view(session_id, document)
    return SessionSummary(session_id, view.persona_name, view.scope, view.high_water, row.turns)
