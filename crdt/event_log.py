"""The event log: pipeline events in the order of their arrival, in documents of a fixed number of events.

`log/<sled>/<segment>` holds one array of JSON strings; only its own sled writes it, and nothing else stands in it.
Events are found by arithmetic: a segment knows its first seq. The newest segment stays in memory; the others come and
go. Appenders queue up; one task takes what has queued, allots the seqs, and commits it all at once. What readers see
ends at the newest committed seq.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog

from crdt.audit import validate_event
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
from crdt.errors import CrdtError, InvalidEvent, StoreDamaged
from crdt.model import Appended, EventBatch, PipelineEvent, RecordedEvent
from crdt.segments import Retention, Segment, read_segments, write_segment
from crdt.transcript import well_formed

log = structlog.get_logger(__name__)

MAX_EVENTS_PER_COMMIT = 2000
"""Events that share a commit, beyond the first caller's own: bounds how long the first caller waits for the last."""

SEALED_SEGMENTS_IN_MEMORY = 8
DEDUPE_DAYS = 90


@dataclass(slots=True)
class _Waiting:
    batches: Sequence[EventBatch]
    done: asyncio.Future[list[Appended]]

    @property
    def events(self) -> int:
        return sum(len(batch.events) for batch in self.batches)


def document_name(sled_id: str, segment: int) -> str:
    """Name the document of a segment."""
    return f"log/{sled_id}/{segment}"


def encode_event(seq: int, at_ms: int, event: PipelineEvent) -> str:
    """Encode an event as it stands in the array: a JSON list, the sender's own time only if there is one."""
    fields = [seq, at_ms, event.story_id, event.from_stage, event.to_stage, event.pipeline_event]
    if event.occurred_at is not None:
        fields.append(event.occurred_at)
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def decode_event(sled_id: str, text: str) -> RecordedEvent:
    """Read back what `encode_event` wrote."""
    seq, at_ms, story_id, from_stage, to_stage, pipeline_event, *rest = json.loads(text)
    recorded_at = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    occurred_at = rest[0] if rest else None
    return RecordedEvent(sled_id, seq, story_id, from_stage, to_stage, pipeline_event, recorded_at, occurred_at)


class EventLog:
    """This sled's log. `head` is the newest committed seq, `oldest` the first that retention has left."""

    def __init__(
        self, database: Database, segment_events: int, retention: Retention, clock_ms: Callable[[], int]
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
        self._queue: list[_Waiting] = []
        self._appender: asyncio.Task[None] | None = None
        self._to_compact: set[str] = set()

    @property
    def head(self) -> int:
        """The newest committed seq; 0 before the first event."""
        return self._segments[-1].last_seq if self._segments else 0

    @property
    def oldest(self) -> int:
        """The first seq that is still kept; `head + 1` when the log is empty."""
        return self._segments[0].first_seq if self._segments else 1

    async def open(self) -> None:
        """Load the list of segments and the newest segment, and apply retention.

        Raises:
            StoreDamaged: they are not what was written.
        """
        await self._load_newest()
        await self.apply_retention()

    async def _load_newest(self) -> None:
        """Read the newest segment that is known, and any after it, from the file.

        What stands before it stays as it is: retention may be about to drop some of it.
        """
        try:
            stored = await self._database.read(lambda connection: read_segments(connection, self._sled_id))
        except ValueError as error:
            raise StoreDamaged(str(self._database.path), str(error)) from error
        newest = self._segments[-1].number if self._segments else 0
        segments = self._segments[:-1] + [segment for segment in stored if segment.number >= newest]
        live = None
        if segments:
            live = await self._documents.load(document_name(self._sled_id, segments[-1].number))
            self._check_length(live, segments[-1])
        self._segments, self._live = segments, live

    def _check_length(self, document: Document, segment: Segment) -> None:
        if len(document.array("events")) < segment.events:
            raise StoreDamaged(str(self._database.path), f"document {document.name} has lost events")

    async def append(self, batches: Sequence[EventBatch]) -> list[Appended]:
        """Store batches in one commit, all or nothing, each unless it is a duplicate.

        Raises:
            InvalidEvent: nothing was stored; with several events its `field` is prefixed by `[index].`.
        """
        done: asyncio.Future[list[Appended]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(batches, done))
        if self._appender is None:
            self._appender = asyncio.create_task(self._append_all(), name="event-log-appender")
        return await done

    async def drain(self) -> None:
        """Wait until everything that was queued is stored or refused."""
        if self._appender is not None:
            await self._appender

    async def _append_all(self) -> None:
        try:
            while self._queue:
                taken = self._take()
                if not taken:
                    continue
                try:
                    outcomes = await self._append(taken)
                except BaseException as error:  # whatever it is, each caller hears of it, and memory goes back
                    for waiting in taken:
                        _fail(waiting.done, error)
                    if isinstance(error, asyncio.CancelledError):
                        raise
                    await self._load_again()
                    continue
                for waiting, outcome in zip(taken, outcomes, strict=True):
                    if not waiting.done.done():
                        waiting.done.set_result(outcome)
        finally:
            self._appender = None

    async def _load_again(self) -> None:
        self._live = None
        try:
            await self._load_newest()
        except CrdtError as error:
            log.error("log_reload_failed", error=str(error))

    def _take(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        events = 0
        while self._queue and (not taken or events + self._queue[0].events <= MAX_EVENTS_PER_COMMIT):
            waiting = self._queue.pop(0)
            if not waiting.done.done():
                taken.append(waiting)
                events += waiting.events
        return taken

    async def _append(self, taken: Sequence[_Waiting]) -> list[list[Appended]]:
        if self._live is None:
            await self._load_newest()
        known = await self._known_keys(taken)
        fresh, outcomes = _allot(taken, known, self.head + 1)
        if not fresh:
            return outcomes
        self._newest_ms = max(self._newest_ms, self._clock_ms())
        growth = self._grow([event for batch in fresh for event in batch.events], self._newest_ms)
        keys = dict.fromkeys(key for batch in fresh for key in batch.dedupe_keys)

        def store(connection: sqlite3.Connection) -> None:
            insert_ops(connection, self._database.state.writer_id, growth.ops)
            for segment in growth.segments:
                write_segment(connection, self._sled_id, segment)
            connection.executemany("INSERT INTO dedupe VALUES (?, ?)", [(key, self._newest_ms) for key in keys])

        await self._database.write(store)
        self._publish(growth)
        return outcomes

    async def _known_keys(self, taken: Sequence[_Waiting]) -> set[str]:
        keys = [key for waiting in taken for batch in waiting.batches for key in batch.dedupe_keys]
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
        growth = _Growth([], [], [])
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
            growth.ops.append(document.change(lambda doc=document, new=texts: doc.array("events").extend(new)))  # type: ignore[misc]
            count = segment.events + len(chunk)
            segment = replace(segment, events=count, sealed_at=at_ms if count >= self._segment_events else None)
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
            if segment.sealed_at is not None or document.ops - document.snapshot_ops >= COMPACT_AFTER_OPS:
                self._to_compact.add(document.name)

    async def read(self, first: int, last: int) -> list[RecordedEvent]:
        """Read the events with seqs `first` to `last`, as far as they are committed and kept, oldest first."""
        events: list[RecordedEvent] = []
        for segment in list(self._segments):
            low, high = max(first, segment.first_seq), min(last, segment.last_seq)
            if low > high:
                continue
            document = await self._document(segment)
            if document is None:
                events.clear()  # what is older is gone as well
            else:
                texts = document.array("events")[low - segment.first_seq : high - segment.first_seq + 1]
                events.extend(decode_event(self._sled_id, text) for text in texts)
        return events

    async def _document(self, segment: Segment) -> Document | None:
        """Get a segment's document; `None` when retention took it meanwhile."""
        name = document_name(self._sled_id, segment.number)
        if self._live is not None and self._live.name == name:
            return self._live
        document = await self._documents.get(name)
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

        # Nothing is written when nothing is to go: a store must open on a full disk.
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
        """Compact what has grown, and apply retention."""
        while self._to_compact:
            name = self._to_compact.pop()
            await self._documents.compact(name)
            if self._live is not None and self._live.name == name:
                self._live.snapshot_ops = self._live.ops
        await self.apply_retention()

    @property
    def needs_housekeeping(self) -> bool:
        """Whether a document has grown enough to be compacted."""
        return bool(self._to_compact)


def _has_keys_before(connection: sqlite3.Connection, at_ms: int) -> bool:
    return connection.execute("SELECT 1 FROM dedupe WHERE recorded_at < ? LIMIT 1", (at_ms,)).fetchone() is not None


@dataclass(slots=True)
class _Growth:
    """What an append adds: the updates, and each touched segment with its document, as it is after the commit."""

    ops: list[Op]
    segments: list[Segment]
    documents: list[Document]

    def put(self, segment: Segment, document: Document) -> None:
        if self.segments and self.segments[-1].number == segment.number:
            self.segments[-1] = segment
        else:
            self.segments.append(segment)
            self.documents.append(document)


def _allot(taken: Sequence[_Waiting], known: set[str], next_seq: int) -> tuple[list[EventBatch], list[list[Appended]]]:
    """Decide which batches are new, and the seqs of their events; a key counts from its first batch on."""
    fresh: list[EventBatch] = []
    outcomes: list[list[Appended]] = []
    for waiting in taken:
        outcome: list[Appended] = []
        for batch in waiting.batches:
            if known.intersection(batch.dedupe_keys):
                outcome.append(Appended((), duplicate=True))
                continue
            known.update(batch.dedupe_keys)
            if batch.events or batch.dedupe_keys:
                fresh.append(batch)
            outcome.append(Appended(tuple(range(next_seq, next_seq + len(batch.events)))))
            next_seq += len(batch.events)
        outcomes.append(outcome)
    return fresh, outcomes


def _fail(done: asyncio.Future[list[Appended]], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)


def validate_batches(batches: Sequence[EventBatch], *, allow_gap: bool) -> None:
    """Refuse the whole if one event is refused; with several events the error's field names which one."""
    events = [event for batch in batches for event in batch.events]
    for key in (key for batch in batches for key in batch.dedupe_keys):
        if not isinstance(key, str) or key != well_formed(key):
            raise InvalidEvent("dedupe_keys", f"must be strings of Unicode characters, not {key!r}")
    for index, event in enumerate(events):
        try:
            validate_event(event, allow_gap=allow_gap)
        except InvalidEvent as error:
            if len(events) == 1:
                raise
            raise InvalidEvent(f"[{index}].{error.field}", error.problem) from None
