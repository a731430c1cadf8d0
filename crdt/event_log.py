"""The event log: pipeline events in the order of their arrival, in documents of a fixed number of events.

`log/<sled>/<segment>` holds one array of JSON strings; only its own sled writes it, and nothing else stands in it.
Events are found by arithmetic: a segment knows its first seq. The newest segment stays in memory; the others come and
go. Appenders queue up; one task takes what has queued, allots the seqs, and commits it all at once. What readers see
ends at the newest committed seq.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import structlog

from crdt.append_queue import Append, allot, take
from crdt.database import Database
from crdt.documents import (
    MAX_CHANGES_PER_TRANSACTION,
    OF_DOCUMENT,
    Document,
    Documents,
    Op,
    delete_document,
    insert_ops,
)
from crdt.errors import CrdtError, StoreDamaged, StoreFull
from crdt.gathering import Gathering
from crdt.log_entries import RecentEvents, decode_event, document_name, encode_event
from crdt.model import Appended, EventBatch, PipelineEvent, RecordedEvent
from crdt.segments import Retention, Segment, counted, read_segments, write_segment

log = structlog.get_logger(__name__)

SEALED_SEGMENTS_IN_MEMORY = 8
COMPACT_LIVE_AFTER_OPS = 4000
"""A start reads so many in 40 ms. A segment of the usual size is full before, and so is written to a snapshot once."""
DEDUPE_DAYS = 90


class EventLog:
    """This sled's log. `head` is the newest committed seq, `oldest` the first that retention has left."""

    def __init__(
        self,
        database: Database,
        segment_events: int,
        retention: Retention,
        clock_ms: Callable[[], int],
        on_growth: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._documents = Documents(database, SEALED_SEGMENTS_IN_MEMORY)
        self._sled_id = database.state.sled_id
        self._segment_events = segment_events
        self._retention = retention
        self._clock_ms = clock_ms
        self._newest_ms = 0
        self._segments: list[Segment] = []
        self._live: Document | None = None
        self._recent = RecentEvents(self._sled_id)
        self._appends = Gathering(self._begin)
        self._task: asyncio.Task[None] | None = None
        self._housekeeping = asyncio.Lock()
        self._on_growth = on_growth
        self.needs_housekeeping = False
        """Whether a document has grown enough to be compacted; `on_growth` is called then."""

    @property
    def head(self) -> int:
        """The newest committed seq; 0 before the first event."""
        return self._segments[-1].last_seq if self._segments else 0

    @property
    def oldest(self) -> int:
        """The first seq that is still kept; `head + 1` when the log is empty."""
        return self._segments[0].first_seq if self._segments else 1

    @property
    def segments(self) -> int:
        """How many segments are kept."""
        return len(self._segments)

    async def open(self) -> None:
        """Load the list of segments and the newest segment, and apply retention.

        Raises:
            StoreDamaged: they are not what was written.
        """
        await self._load_newest()
        try:
            await self.apply_retention()
        except StoreFull as error:  # also what frees room needs some; the next housekeeping tries again
            log.warning("retention_postponed", reason=str(error))

    async def _load_newest(self) -> None:
        """Read the newest segment that is known, and any after it, from the file.

        What stands before it stays as it is in the end: retention may be about to drop some of it, or do so meanwhile.
        """
        try:
            stored = await self._database.read(lambda connection: read_segments(connection, self._sled_id))
        except ValueError as error:
            raise StoreDamaged(str(self._database.path), str(error)) from error
        newest = self._segments[-1].number if self._segments else 0
        grown = [segment for segment in stored if segment.number >= newest]
        live = None
        if grown:
            live = await self._documents.load(document_name(self._sled_id, grown[-1].number))
            self._check_length(live, grown[-1])
            grown[-1] = counted(grown[-1], live)
        self._segments, self._live = self._segments[:-1] + grown, live

    def _check_length(self, document: Document, segment: Segment) -> None:
        if document.length("events") < segment.events:
            raise StoreDamaged(str(self._database.path), f"document {document.name} has lost events")

    def append(self, batches: Sequence[EventBatch]) -> asyncio.Future[list[Appended]]:
        """Store batches in one commit, all or nothing, each unless it is a duplicate.

        Raises:
            InvalidEvent: nothing was stored; with several events its `field` is prefixed by `[index].`.
        """
        done: asyncio.Future[list[Appended]] = asyncio.get_running_loop().create_future()
        self._appends.add(Append(batches, done))
        return done

    async def drain(self) -> None:
        """Wait until everything that was queued is stored or refused."""
        await self._appends.until_idle()

    def _begin(self, queue: list[Append]) -> None:
        taken = take(queue)
        keys = [key for waiting in taken for batch in waiting.batches for key in batch.dedupe_keys]
        if not taken:
            self._appends.ended()
        elif keys or self._live is None:
            self._task = asyncio.create_task(self._prepare(taken, keys), name="event-log-prepare")
        else:
            self._append(taken, set())

    async def _prepare(self, taken: Sequence[Append], keys: Sequence[str]) -> None:
        """Read from the file what must be known before an append."""
        try:
            if self._live is None:
                await self._load_newest()
            known = await self._known_keys(keys)
        except BaseException as error:  # whatever it is, each caller hears of it
            self._fail(taken, error)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            self._append(taken, known)

    def _append(self, taken: Sequence[Append], known: set[str]) -> None:
        """Put events into memory and have them stored; `_stored` is told what became of that."""
        try:
            fresh, outcomes = allot(taken, known, self.head + 1)
            if not fresh:
                self._succeed(taken, outcomes)
                return
            self._newest_ms = max(self._newest_ms, self._clock_ms())
            growth = self._grow([event for batch in fresh for event in batch.events], self._newest_ms)
            keys = dict.fromkeys(key for batch in fresh for key in batch.dedupe_keys)
            store = partial(self._store, growth, keys)
            self._database.submit(store, partial(self._stored, taken, growth, outcomes), gathered=True)
        except BaseException as error:  # pycrdt panics with a BaseException
            self._fail(taken, error)

    def _store(self, growth: _Growth, keys: Iterable[str], connection: sqlite3.Connection) -> None:
        insert_ops(connection, self._database.state.writer_id, growth.ops)
        for segment in growth.rows:
            write_segment(connection, self._sled_id, segment)
        for key in keys:
            connection.execute("INSERT INTO dedupe VALUES (?, ?)", (key, growth.at_ms))

    def _stored(
        self, taken: Sequence[Append], growth: _Growth, outcomes: list[list[Appended]], error: BaseException | None
    ) -> None:
        if error is None:
            self._publish(growth)
            self._succeed(taken, outcomes)
        else:
            self._fail(taken, error)

    def _succeed(self, taken: Sequence[Append], outcomes: list[list[Appended]]) -> None:
        for waiting, outcome in zip(taken, outcomes, strict=True):
            if not waiting.done.done():
                waiting.done.set_result(outcome)
        self._appends.ended()

    def _fail(self, taken: Sequence[Append], error: BaseException) -> None:
        for waiting in taken:
            if not waiting.done.done():
                waiting.done.set_exception(error)
        self._task = asyncio.create_task(self._load_again(), name="event-log-reload")

    async def _load_again(self) -> None:
        """After an error: memory goes back to what the file holds, before anything else is appended."""
        self._live = None
        try:
            await self._load_newest()
        except CrdtError as error:
            log.error("log_reload_failed", error=str(error))
        finally:
            self._appends.ended()

    async def _known_keys(self, keys: Sequence[str]) -> set[str]:
        if not keys:
            return set()

        def lookup(connection: sqlite3.Connection) -> set[str]:
            query = "SELECT 1 FROM dedupe WHERE key = ?"
            return {key for key in keys if connection.execute(query, (key,)).fetchone()}

        return await self._database.read(lookup)

    def _grow(self, events: Sequence[PipelineEvent], at_ms: int) -> _Growth:
        """Put events into the documents, in memory only; the caller commits what comes back."""
        segment = self._segments[-1] if self._segments else Segment(1, 1, 0)
        document = self._live or Document(document_name(self._sled_id, 1), self._database.state.writer_id)
        growth = _Growth(events, at_ms, grown=self._segments[-1] if self._segments else None)
        position = 0
        while position < len(events):
            if segment.events >= self._segment_events:
                if segment.sealed_at is None:  # it was full when segments were larger
                    growth.put(replace(segment, sealed_at=at_ms), document)
                segment = Segment(segment.number + 1, segment.last_seq + 1, 0)
                name = document_name(self._sled_id, segment.number)
                document = Document(name, self._database.state.writer_id)
            room = min(self._segment_events - segment.events, MAX_CHANGES_PER_TRANSACTION)
            chunk = events[position : position + room]
            texts = [encode_event(segment.last_seq + 1 + i, at_ms, event) for i, event in enumerate(chunk)]
            growth.ops.append(document.change(lambda doc=document, new=texts: doc.extend("events", new)))  # type: ignore[misc]
            count = segment.events + len(chunk)
            sealed_at = at_ms if count >= self._segment_events else None
            segment = Segment(segment.number, segment.first_seq, count, sealed_at)
            growth.put(segment, document)
            position += len(chunk)
        return growth

    def _publish(self, growth: _Growth) -> None:
        """Let readers see what was committed."""
        for segment, document in zip(growth.segments, growth.documents, strict=True):
            if self._segments and self._segments[-1].number == segment.number:
                self._segments[-1] = segment
            else:
                self._segments.append(segment)
            self._live = document
            if segment.sealed_at is not None:
                self._documents.adopt(document)
            if segment.sealed_at is not None or _is_long(document):
                self.needs_housekeeping = True
                self._on_growth()
        self._recent.extend(self.head, growth.at_ms, growth.events)

    def recent(self, first: int, last: int) -> list[PipelineEvent] | None:
        """The events with seqs `first` to `last`, as they were handed in, if all of them came lately."""
        return self._recent.given(first, last)

    async def read(self, first: int, last: int) -> list[RecordedEvent]:
        """Read the events with seqs `first` to `last`, as far as they are committed and kept, oldest first."""
        first, last = max(first, self.oldest), min(last, self.head)
        recent = self._recent.read(first, last)
        if recent is not None:
            return recent
        events: list[RecordedEvent] = []
        for segment in list(self._segments):
            low, high = max(first, segment.first_seq), min(last, segment.last_seq)
            if low > high:
                continue
            document = await self._document(segment)
            if document is None:
                events.clear()  # what is older is gone as well
            else:
                texts = _slice(document, low - segment.first_seq, high - segment.first_seq + 1)
                events.extend([decode_event(self._sled_id, text) for text in texts])
        return events

    async def _document(self, segment: Segment) -> Document | None:
        """Get a segment's document; `None` when retention took it meanwhile."""
        name = document_name(self._sled_id, segment.number)
        if self._live is not None and self._live.name == name:
            return self._live
        # One that still grows is kept by none but the log itself, or it would be read later as it is now.
        still_grows = segment.sealed_at is None
        document = await (self._documents.load(name) if still_grows else self._documents.get(name))
        if segment.first_seq < self.oldest:
            self._documents.forget(name)
            return None
        self._check_length(document, segment)
        return document

    async def apply_retention(self) -> None:
        """Drop whole segments that lie beyond what is kept, and dedupe keys that are too old to matter."""
        now = self._clock_ms()
        oldest_key = now - DEDUPE_DAYS * 86_400_000
        head = self.head
        gone = list(
            itertools.takewhile(lambda segment: self._retention.allows_drop(segment, head, now), self._segments[:-1])
        )

        def drop(connection: sqlite3.Connection) -> int:
            for segment in gone:
                delete_document(connection, document_name(self._sled_id, segment.number))
                connection.execute(
                    "DELETE FROM segments WHERE sled_id = ? AND segment = ?", (self._sled_id, segment.number)
                )
            return connection.execute("DELETE FROM dedupe WHERE recorded_at < ?", (oldest_key,)).rowcount

        if not gone and not await self._database.read(lambda connection: _has_keys_before(connection, oldest_key)):
            return
        # Readers must not look for a segment whose rows are about to go, so it leaves their sight first.
        self._segments = self._segments[len(gone) :]
        try:
            forgotten_keys = await self._database.write(drop)
        except BaseException:
            self._segments = gone + self._segments
            raise
        for segment in gone:
            self._documents.forget(document_name(self._sled_id, segment.number))
        if gone or forgotten_keys:
            log.info("retention_applied", segments=len(gone), oldest=self.oldest, dedupe_keys=forgotten_keys)

    async def housekeep(self) -> None:
        """Compact what has grown, also what a failure or a death left as it was, and apply retention."""
        async with self._housekeeping:  # who waits for it finds it done, whoever began it
            self.needs_housekeeping = False
            for name in await self._database.read(lambda connection: _names_with_ops(connection, self._sled_id)):
                live = self._live if self._live is not None and self._live.name == name else None
                if live is not None and self._segments[-1].sealed_at is None and not _is_long(live):
                    continue
                try:
                    await self._documents.compact(name)
                except StoreDamaged as error:  # the others, and retention, must not wait for it
                    log.error("compaction_refused", document=name, error=str(error))
                else:
                    if live is not None:
                        live.snapshot_ops = live.ops
            await self.apply_retention()


def _slice(document: Document, first: int, end: int) -> list[str]:
    """Read the events at places `first` to `end`, by whichever way is shorter: one by one costs ten times as much."""
    few = (end - first) * 10 < document.length("events")
    return document.array("events")[first:end] if few else document.texts("events")[first:end]


def _is_long(document: Document) -> bool:
    return document.ops - document.snapshot_ops >= COMPACT_LIVE_AFTER_OPS


def _names_with_ops(connection: sqlite3.Connection, sled_id: str) -> list[str]:
    names = (f"log/{sled_id}/", f"log/{sled_id}0")  # "0" is what follows "/"
    found = connection.execute("SELECT doc_id, name FROM documents WHERE name > ? AND name < ?", names).fetchall()
    one_op = f"SELECT 1 FROM ops WHERE {OF_DOCUMENT} LIMIT 1"
    return [name for doc_id, name in found if connection.execute(one_op, (doc_id,)).fetchone()]


def _has_keys_before(connection: sqlite3.Connection, at_ms: int) -> bool:
    return connection.execute("SELECT 1 FROM dedupe WHERE recorded_at < ? LIMIT 1", (at_ms,)).fetchone() is not None


@dataclass(slots=True)
class _Growth:
    """What an append adds: the updates, and each touched segment with its document, as it is after the commit."""

    events: Sequence[PipelineEvent]
    at_ms: int
    grown: Segment | None
    ops: list[Op] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)

    def put(self, segment: Segment, document: Document) -> None:
        if self.segments and self.segments[-1].number == segment.number:
            self.segments[-1] = segment
        else:
            self.segments.append(segment)
            self.documents.append(document)

    @property
    def rows(self) -> list[Segment]:
        """The segments whose rows must be written: all but the one that was growing and goes on to grow."""
        return [each for each in self.segments if not self._goes_on(each)]

    def _goes_on(self, segment: Segment) -> bool:
        grown = self.grown
        return grown is not None and segment.number == grown.number and segment.sealed_at is grown.sealed_at is None
