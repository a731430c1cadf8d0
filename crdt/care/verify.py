"""Looks at every row of a database, and names all that is wrong with it.

All is read in one transaction: what is found is the state of one commit, also beside a service that goes on writing.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from crdt import audit, log_entries, segments, soundness, transcript, turns
from crdt.care.files import reading
from crdt.care.progress import Progress, unwatched
from crdt.database import in_snapshot
from crdt.documents import Document, build_document, read_document
from crdt.errors import InvalidEvent
from crdt.marks import Marks
from crdt.model import PipelineEvent, RecordedEvent, TranscriptEntry
from crdt.session_rows import read_session_row
from crdt.state import read_state

AT_MOST_PAGES = 100
"""Problems that SQLite is asked for; one broken page can make thousands."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What a database holds, and what is wrong with it; `problems` is empty when it is whole."""

    sled_id: str
    events: int
    sessions: int
    documents: int
    problems: tuple[str, ...]


@dataclass(slots=True)
class _Search:
    """What was found so far. A step that can't be done is a problem itself, and the next is taken."""

    problems: list[str] = field(default_factory=list)
    heads: Marks = field(default_factory=dict)
    open_turns: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """By their rows: the keys for each session."""
    events: int = 0
    sessions: int = 0
    documents: int = 0

    def step(self, look: Callable[[], object]) -> None:
        try:
            look()
        except (ValueError, sqlite3.Error) as error:
            self.add(str(error))
        except Exception as error:  # values that passed their checksum and still can't be read, whatever they are
            self.add(f"something can't be read: {type(error).__name__}: {error}")

    def add(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def verify_database(path: str | Path, progress: Progress = unwatched) -> Verification:
    """Read all of a database, beside the service or without it; nothing is changed.

    Raises:
        StoreDamaged, StoreNewer, StoreUnavailable: it can't be opened, or has lost its newest commits.
    """
    with reading(Path(path)) as connection:
        return in_snapshot(connection, lambda snapshot: examine(snapshot, progress))


def examine(connection: sqlite3.Connection, progress: Progress) -> Verification:
    """Read all that the open transaction shows."""
    search = _Search()
    progress("checking pages", 0, 0)
    search.step(lambda: _check_pages(connection, search))
    search.step(lambda: _check_rows(connection, search))
    search.step(lambda: _find_open_turns(connection, search))
    names = _document_names(connection, search)
    search.documents = len(names)
    for done, name in enumerate(names):
        progress("reading documents", done, len(names))
        search.step(partial(_check_document, connection, search, name))
    progress("reading documents", len(names), len(names))
    search.step(lambda: _check_whose_rows(connection, search))
    search.step(lambda: _check_open_work(connection, search))
    state = read_state(connection) if not search.problems else None
    sled_id = state.sled_id if state else "unknown"
    return Verification(sled_id, search.events, search.sessions, search.documents, tuple(search.problems))


def _check_pages(connection: sqlite3.Connection, search: _Search) -> None:
    search.step(lambda: soundness.check_tables(connection))
    for problem in soundness.pages(connection, AT_MOST_PAGES):
        search.add(problem)


def _check_rows(connection: sqlite3.Connection, search: _Search) -> None:
    search.step(lambda: read_state(connection))
    for problem in soundness.rows(connection):
        search.add(problem)


def _find_open_turns(connection: sqlite3.Connection, search: _Search) -> None:
    for session_id, key in turns.still_open(connection):
        search.open_turns[session_id].add(key)


def _document_names(connection: sqlite3.Connection, search: _Search) -> list[str]:
    """All documents that there are or should be; those of a log in the order of their segments."""
    names: dict[str, None] = {}

    def of_logs() -> None:
        for (sled_id,) in connection.execute("SELECT DISTINCT sled_id FROM segments").fetchall():
            for segment in segments.read_segments(connection, sled_id):
                names[log_entries.document_name(sled_id, segment.number)] = None
                search.heads[sled_id] = segment.last_seq

    def of_sessions() -> None:
        for (session_id,) in connection.execute("SELECT session_id FROM sessions").fetchall():
            row = read_session_row(connection, session_id)
            names[transcript.document_name(session_id, row.part if row else 1)] = None
            search.sessions += 1

    def of_no_row() -> None:
        for (name,) in connection.execute("SELECT name FROM documents").fetchall():
            if name not in names:
                search.add(f"document {name} belongs to no segment and no session")
                names[name] = None

    for look in (of_logs, of_sessions, of_no_row):
        search.step(look)
    return list(names)


def _check_document(connection: sqlite3.Connection, search: _Search, name: str) -> None:
    stored = read_document(connection, name)
    if stored is None:
        raise ValueError(f"document {name} is missing")
    document = build_document(name, 0, stored)
    kind, _, rest = name.partition("/")
    owner, _, number = rest.rpartition("/")
    if kind == "log":
        _check_segment(connection, search, document, owner, int(number))
    else:
        _check_session(search, document, owner)


def _check_segment(
    connection: sqlite3.Connection, search: _Search, document: Document, sled_id: str, number: int
) -> None:
    query = "SELECT first_seq, events, sealed_at FROM segments WHERE sled_id = ? AND segment = ?"
    first_seq, events, sealed_at = connection.execute(query, (sled_id, number)).fetchone()
    texts = document.texts("events")
    search.heads[sled_id] = max(search.heads.get(sled_id, 0), first_seq + len(texts) - 1)
    if len(texts) < events or (len(texts) > events and sealed_at is not None):
        raise ValueError(f"document {document.name} holds {len(texts)} events, its segment's row says {events}")
    for seq, text in enumerate(texts, first_seq):
        event = log_entries.decode_event(sled_id, text)
        if event.event_seq != seq:
            raise ValueError(f"document {document.name} holds event {event.event_seq} where event {seq} should be")
        try:
            audit.validate_event(_as_handed_in(event), allow_gap=True)
        except InvalidEvent as error:
            raise ValueError(f"event {seq} of document {document.name}: {error.field} {error.problem}") from error
    search.events += len(texts)


def _as_handed_in(event: RecordedEvent) -> PipelineEvent:
    return PipelineEvent(event.story_id, event.from_stage, event.to_stage, event.pipeline_event, event.occurred_at)


def _check_session(search: _Search, document: Document, session_id: str) -> None:
    called = f"session {session_id}"
    marks = [transcript.read_high_water(document), transcript.read_start(document)]
    for sled_id, seq in (cell for each in marks for cell in each.items()):
        if seq > search.heads.get(sled_id, 0):
            head = search.heads.get(sled_id, 0)
            search.add(f"{called} has seen event {seq} of sled {sled_id}, whose log ends at {head}")
    entries = transcript.read_entries(document)
    for (role, key), count in Counter((entry.role, entry.key) for entry in entries).items():
        if count > 1:
            search.add(f"{called} has {count} entries of the {role} for turn {key}")
    _check_open_turns(search, session_id, entries)


def _check_open_turns(search: _Search, session_id: str, entries: list[TranscriptEntry]) -> None:
    without_reply, still_open = transcript.open_turns(entries), search.open_turns[session_id]
    for key in sorted(without_reply - still_open):
        search.add(f"turn {key} of session {session_id} has no reply, and no row that says it is open")
    for key in sorted(still_open - without_reply):
        search.add(f"turn {key} of session {session_id} is open by its row, and not by the transcript")


def _check_whose_rows(connection: sqlite3.Connection, search: _Search) -> None:
    for table in ("ops", "snapshots"):
        query = f"SELECT DISTINCT doc_id FROM {table} WHERE doc_id NOT IN (SELECT doc_id FROM documents)"
        for (doc_id,) in connection.execute(query).fetchall():
            search.add(f"{table} of document number {doc_id} are there, and no document has that number")


def _check_open_work(connection: sqlite3.Connection, search: _Search) -> None:
    """What waits must belong to something."""
    query = (
        "SELECT key, turn_key FROM inbox WHERE outcome IS NULL AND turn_key IS NOT NULL "
        "AND NOT EXISTS (SELECT 1 FROM turns WHERE session_id = inbox.session_id AND key = turn_key "
        "AND turns.outcome IS NULL)"
    )
    for key, turn_key in connection.execute(query).fetchall():
        search.add(f"message {key} waits for turn {turn_key}, which is not open")
    sessions = {session_id for (session_id,) in connection.execute("SELECT session_id FROM sessions")}
    for session_id in sorted(search.open_turns.keys() - sessions):
        for key in sorted(search.open_turns[session_id]):
            search.add(f"turn {key} belongs to session {session_id}, which is missing")
