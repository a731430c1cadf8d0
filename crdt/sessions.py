"""The llm_sessions collection: one document a room, replaced by its next part when it has grown.

Rules for whoever changes this:
- What a turn needs (marks, transcript entry, inbox rows) goes into one commit, so it can't come apart in a crash.
- A session's lock is held until its commit is known. Nothing but its commit is awaited between the change of a document
  and the end of what belongs to it: a cancellation is put off by commits only.
- Nothing is deleted inside a document (in place a turn goes from 28 to 269 microseconds): a roll writes part n + 1
  with what is kept, and deletes part n with its rows, in one commit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import structlog

from crdt import inbox, outbox, transcript, turns
from crdt.database import Database
from crdt.documents import (
    COMPACT_AFTER_OPS,
    MAX_CHANGES_PER_TRANSACTION,
    Document,
    Documents,
    Op,
    delete_document,
    insert_ops,
)
from crdt.errors import StoreDamaged, TurnOpen, UnknownScope
from crdt.event_log import EventLog
from crdt.marks import Marks, advance
from crdt.model import SINGLE_SLED, Delivery, LlmSessionView, Message, TakenBack, TranscriptEntry, Turn
from crdt.session_rows import SessionRow, read_session_row, write_session_row
from crdt.telling import Keep, Telling, tell

log = structlog.get_logger(__name__)

ROLL_AFTER_ENTRIES = 200
"""Entries of one part (measured: rolling at 200 keeps a turn at 24 microseconds and a read at 0.75 ms)."""

SESSIONS_IN_MEMORY = 64
"""Each takes some 60 kB with 200 entries; one that is not there is read in a millisecond or two."""


Strike = Callable[[TranscriptEntry, Sequence[TakenBack]], TranscriptEntry]
"""Takes the text of messages that were taken back out of the entry that holds them."""


@dataclass(frozen=True, slots=True)
class _Session:
    session_id: str
    row: SessionRow
    document: Document
    is_new: bool


def _struck(entry: TranscriptEntry, gone: Sequence[TakenBack], strike: Strike) -> TranscriptEntry:
    here = [each for each in gone if each.turn_key == entry.key]
    return strike(entry, here) if here and entry.role == "user" else entry


class Sessions:
    """All sessions of this node."""

    def __init__(self, database: Database, event_log: EventLog, clock_ms: Callable[[], int]) -> None:
        self._database = database
        self._event_log = event_log
        self._clock_ms = clock_ms
        self._sled_id = database.state.sled_id
        self._documents = Documents(database, SESSIONS_IN_MEMORY)
        self._rows: dict[str, SessionRow] = {}
        self._log = log.bind()  # once, not for each line

    async def write(self, session_id: str, persona_name: str, scope: str) -> None:
        """Make a session, or change its persona and scope; the marks stay as they are."""
        if scope != SINGLE_SLED:
            raise UnknownScope(scope)
        async with self._documents.lock(session_id):
            session = await self._open(session_id)
            start = self._start() if session.is_new else None
            document = session.document
            op = self._change(session, lambda: transcript.write_meta(document, persona_name, scope, start))
            await self._commit(session, [op])
        self._log.info("session_written", session=session_id, persona=persona_name, scope=scope)

    async def read(self, session_id: str) -> LlmSessionView | None:
        """Read a session; `None` when there is none."""
        async with self._documents.lock(session_id):
            session = await self._open(session_id)
            return None if session.is_new else transcript.read_view(session_id, session.document)

    async def read_transcript(self, session_id: str) -> list[TranscriptEntry]:
        """Read the entries that the session keeps, oldest first; `[]` when there is no session."""
        async with self._documents.lock(session_id):
            session = await self._open(session_id)
            return transcript.read_entries(session.document)

    async def assemble_and_advance(self, session_id: str) -> list[str]:
        """Take all events that the session has not seen; its marks pass them in the same commit."""
        async with self._documents.lock(session_id):
            session = await self._open(session_id)
            telling = await tell(self._event_log, self._mark(session))
            if telling.mark is None:
                return []
            session = await self._rolled_if_grown(session)
            op = self._change(session, lambda: self._advance(session, telling))
            await self._commit(session, [op])
        self._log_assemble(session_id, telling)
        return telling.lines

    async def begin_turn(
        self,
        asked: Turn,
        context: Sequence[Message],
        said: Sequence[Message],
        max_lines: int,
        keep: Keep | None,
    ) -> Turn:
        """Put what is new, and what was said, into the transcript; a turn begun before comes back as it was.

        Raises:
            MessageChanged: a message of `said` or `context` is not as it was read.
        """
        session_id = asked.session_id
        async with self._documents.lock(session_id):
            session = await self._rolled_if_grown(await self._open(session_id))
            telling = await tell(self._event_log, self._mark(session), max_lines, keep)
            turn = Turn(session_id, asked.key, asked.text, telling.lines, asked.context)
            op = self._change(session, lambda: self._append_user_entry(session, turn, telling))
            now = self._clock_ms()

            def begin(connection: sqlite3.Connection) -> None:
                turns.insert(connection, session_id, turn.key, now)
                inbox.check_unchanged(connection, (*said, *context))
                inbox.freeze(connection, turn.key, (turn.key, *(message.key for message in (*said, *context))))
                inbox.settle(connection, [message.key for message in context], "context")

            try:
                await self._commit(session, [op], begin)
            except turns.TurnKnown:
                return await self._begin_again(session_id, asked.key)
        if telling.mark is not None:
            self._log_assemble(session_id, telling)
        self._log.info("turn_begun", session=session_id, turn=turn.key, lines=len(turn.lines), messages=len(said))
        return turn

    async def _begin_again(self, session_id: str, key: str) -> Turn:
        attempt = await self._database.write(lambda connection: turns.attempt_again(connection, session_id, key))
        session = await self._open(session_id)
        entries = [entry for entry in transcript.read_entries(session.document) if entry.key == key]
        said = next((entry for entry in entries if entry.role == "user"), TranscriptEntry("user", key, ""))
        answer = next((entry for entry in entries if entry.role == "assistant"), None)
        if answer is None and not entries:
            answer = TranscriptEntry("assistant", key, "")  # only a roll forgets entries, and never an open turn's
        reply, failed = (answer.text, answer.failed) if answer else (None, False)
        self._log.info("turn_begun_again", session=session_id, turn=key, attempt=attempt, complete=reply is not None)
        return Turn(session_id, key, said.text, said.lines, said.context, attempt, reply, failed)

    async def park_turn(self, session_id: str, key: str) -> None:
        """Take back the newest attempt at an open turn: it was broken off in order, and was no death."""
        await self._database.write(lambda connection: turns.take_attempt_back(connection, session_id, key))
        self._log.info("turn_parked", session=session_id, turn=key)

    async def complete_turn(self, turn: Turn, reply: str, deliveries: Sequence[Delivery], failed: bool) -> bool:
        """Put the reply into the transcript, its deliveries into the outbox, and settle the turn's messages.

        Returns whether this call did it; `False` when the turn had been completed before.
        """
        session_id, outcome = turn.session_id, "failed" if failed else "answered"
        entry = TranscriptEntry("assistant", turn.key, transcript.well_formed(reply), failed=failed)
        now = self._clock_ms()

        def complete(connection: sqlite3.Connection) -> None:
            turns.settle(connection, session_id, turn.key, outcome)
            inbox.settle_turn(connection, turn.key, outcome)
            outbox.insert(connection, deliveries, now)

        async with self._documents.lock(session_id):
            session = await self._open(session_id)
            document = session.document
            op = self._change(session, lambda: document.extend("transcript", [transcript.encode_entry(entry)]))
            one_more = SessionRow(session.row.part, session.row.turns + 1)
            session = _Session(session_id, one_more, document, session.is_new)
            try:
                await self._commit(session, [op], complete)
            except turns.TurnSettled:
                return False
        self._log.info("turn_completed", session=session_id, turn=turn.key, outcome=outcome, deliveries=len(deliveries))
        return True

    async def roll(self, session_id: str, keep_entries: int) -> None:
        """Go on with the newest `keep_entries` entries only, cut at a turn's border.

        Raises:
            TurnOpen: a turn of the session has no reply yet.
        """
        async with self._documents.lock(session_id):
            session = await self._open(session_id)
            if session.is_new:
                return
            entries = transcript.read_entries(session.document)
            if transcript.open_turns(entries):
                raise TurnOpen(session_id)
            await self._roll(session, transcript.newest_turns(entries, keep_entries))

    async def redact(self, session_id: str, strike: Strike) -> int:
        """Go on with what was taken back struck out of the entries; returns how many messages that were.

        Raises:
            TurnOpen: a turn of the session has no reply yet.
        """
        async with self._documents.lock(session_id):
            gone = await self._database.read(lambda connection: inbox.taken_back(connection, session_id))
            session = await self._open(session_id)
            if not gone or session.is_new:
                return 0
            entries = transcript.read_entries(session.document)
            if transcript.open_turns(entries):
                raise TurnOpen(session_id)
            left = [_struck(entry, gone, strike) for entry in entries]
            keys = [each.key for each in gone]
            await self._roll(session, left, lambda connection: inbox.forget_taken_back(connection, keys))
        self._log.info("messages_struck", session=session_id, count=len(gone))
        return len(gone)

    async def move(self, old_id: str, new_id: str) -> bool:
        """Go on as the session `new_id`, with everything that there is of `old_id`, also an open turn.

        Returns whether that was done: not where there is no old session, or already a new one.
        """
        async with AsyncExitStack() as locks:
            for session_id in sorted({old_id, new_id}):
                await locks.enter_async_context(self._documents.lock(session_id))
            old, new = await self._open(old_id), await self._open(new_id)
            if old.is_new or not new.is_new:
                return False
            moved, ops = self._copy(old, new_id, 1, transcript.read_entries(old.document))

            def move(connection: sqlite3.Connection) -> None:
                delete_document(connection, old.document.name)
                connection.execute("DELETE FROM sessions WHERE session_id = ?", (old_id,))
                turns.move(connection, old_id, new_id)
                inbox.move(connection, old_id, new_id)

            # Before the commit: one that is reported as failed may yet be on the disk.
            for document in (old.document, new.document):
                self._documents.forget(document.name)
            self._rows.pop(old_id, None)
            await self._commit(moved, ops, move)
            self._documents.adopt(moved.document)
        self._log.info("session_moved", session=old_id, to=new_id)
        return True

    async def _rolled_if_grown(self, session: _Session) -> _Session:
        document = session.document
        if document.length("transcript") < ROLL_AFTER_ENTRIES and document.ops < COMPACT_AFTER_OPS:
            return session
        entries = transcript.read_entries(document)
        if transcript.open_turns(entries):
            return session
        return await self._roll(session, transcript.newest_turns(entries, ROLL_AFTER_ENTRIES // 2))

    async def _roll(
        self,
        session: _Session,
        kept: Sequence[TranscriptEntry],
        also: Callable[[sqlite3.Connection], None] | None = None,
    ) -> _Session:
        old = session.document
        rolled, ops = self._copy(session, session.session_id, session.row.part + 1, kept)

        def begin(connection: sqlite3.Connection) -> None:
            delete_document(connection, old.name)
            if also is not None:
                also(connection)

        await self._commit(rolled, ops, begin)
        self._documents.forget(old.name)
        self._documents.adopt(rolled.document)
        self._log.info("session_rolled", session=session.session_id, part=rolled.row.part, entries=len(kept))
        return rolled

    def _copy(
        self, session: _Session, session_id: str, part: int, kept: Sequence[TranscriptEntry]
    ) -> tuple[_Session, list[Op]]:
        """Begin a part with what is kept of a session, in memory only."""
        document = Document(transcript.document_name(session_id, part), self._database.state.writer_id)
        view = transcript.read_view(session_id, session.document)
        start = transcript.read_start(session.document)

        def begin_part() -> None:
            transcript.write_meta(document, view.persona_name, view.scope, start)
            transcript.write_high_water(document, self._sled_id, view.high_water)

        ops = [document.change(begin_part)]
        texts = [transcript.encode_entry(entry) for entry in kept]
        for first in range(0, len(texts), MAX_CHANGES_PER_TRANSACTION):
            chunk = texts[first : first + MAX_CHANGES_PER_TRANSACTION]
            ops.append(document.change(lambda new=chunk: document.extend("transcript", new)))  # type: ignore[misc]
        return _Session(session_id, replace(session.row, part=part), document, is_new=False), ops

    async def _open(self, session_id: str) -> _Session:
        """Get the session under its lock; `is_new` when it has never been written."""
        row = self._rows.get(session_id)
        if row is None:
            try:
                row = await self._database.read(lambda connection: read_session_row(connection, session_id))
            except ValueError as error:
                raise StoreDamaged(str(self._database.path), str(error)) from error
            if row is not None:
                self._rows[session_id] = row
        is_new = row is None
        row = row or SessionRow(part=1, turns=0)
        document = await self._documents.get(transcript.document_name(session_id, row.part))
        if not is_new and document.ops == 0:
            raise StoreDamaged(str(self._database.path), f"document {document.name} is missing")
        return _Session(session_id, row, document, is_new)

    def _change(self, session: _Session, mutate: Callable[[], None]) -> Op:
        try:
            return session.document.change(mutate)
        except BaseException:  # pycrdt does not roll back, and panics with a BaseException
            self._documents.forget(session.document.name)
            raise

    async def _commit(
        self, session: _Session, ops: Sequence[Op], also: Callable[[sqlite3.Connection], None] | None = None
    ) -> None:
        """Store the changes of a session's document, and what belongs to them; on any error memory goes back."""
        row_changes = self._rows.get(session.session_id) != session.row

        def store(connection: sqlite3.Connection) -> None:
            if also is not None:
                also(connection)
            insert_ops(connection, self._database.state.writer_id, ops)
            if row_changes:
                write_session_row(connection, session.session_id, session.row)

        try:
            await self._database.write(store)
        except BaseException:
            self._documents.forget(session.document.name)
            self._rows.pop(session.session_id, None)
            raise
        self._rows[session.session_id] = session.row

    def _start(self) -> Marks:
        gone = self._event_log.oldest - 1
        return {self._sled_id: gone} if gone else {}

    def _mark(self, session: _Session) -> int:
        start = self._start() if session.is_new else transcript.read_start(session.document)
        high_water = transcript.read_high_water(session.document)
        return max(start.get(self._sled_id, 0), high_water.get(self._sled_id, 0))

    def _advance(self, session: _Session, telling: Telling) -> None:
        document = session.document
        if session.is_new:
            transcript.write_meta(document, "", SINGLE_SLED, self._start())
        if telling.mark is not None:
            marks = advance(transcript.read_high_water(document), self._sled_id, telling.mark)
            transcript.write_high_water(document, self._sled_id, marks)

    def _append_user_entry(self, session: _Session, turn: Turn, telling: Telling) -> None:
        self._advance(session, telling)
        entry = TranscriptEntry("user", turn.key, turn.text, turn.lines, turn.context)
        session.document.extend("transcript", [transcript.encode_entry(entry)])

    def _log_assemble(self, session_id: str, telling: Telling) -> None:
        self._log.info("assemble", session=session_id, sled_entries=telling.entries, gap_count=telling.gaps)
