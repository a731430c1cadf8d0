"""The store: one object for all that must survive. How it is opened, closed and kept busy stands in `lifetime`."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Final

import structlog

from crdt import inbox, outbox, settings
from crdt.append_queue import validate_batches
from crdt.audit import validate_event
from crdt.care.pruning import prune
from crdt.lifetime import Lifetime
from crdt.model import (
    Appended,
    Delivery,
    Edit,
    EventBatch,
    LlmSessionView,
    Message,
    PipelineEvent,
    RecordedEvent,
    TranscriptEntry,
    Turn,
)
from crdt.segments import Retention
from crdt.sessions import Strike
from crdt.statistics import Statistics, measure
from crdt.telling import Keep
from crdt.transcript import well_formed

log = structlog.get_logger(__name__)

SEGMENT_EVENTS: Final = 4_000
"""Events of one log segment: 0.6 MB in memory, a millisecond to load, which every start does."""

OnStep = Callable[[str], Awaitable[None]]
"""Called with "admit", "begin" or "complete" right after the commit of that step, before its caller goes on."""


async def _pass(step: str) -> None:
    """The step that nobody watches."""


class Store(Lifetime):
    """The durable state of one sled. Use it as `async with Store.open(path) as store`."""

    def __init__(self, path: Path, sled_id: str | None, segment_events: int, retention: Retention) -> None:
        super().__init__(path, sled_id, segment_events, retention)
        self._on_step: OnStep = _pass

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        sled_id: str | None = None,
        segment_events: int = SEGMENT_EVENTS,
        retention_events: int | None = None,
        retention_days: float | None = None,
        on_step: OnStep | None = None,
    ) -> Store:
        """Name the database to open; it is opened by `async with`, and made if there is none.

        `sled_id` is needed only to choose it at the first opening or to insist on it later; an empty one does neither.
        Retention keeps at least `retention_events` events and `retention_days` days, dropping whole segments of
        `segment_events`.

        Raises (on entering):
            StoreBusy, StoreDamaged, StoreNewer, SledMismatch, StoreUnavailable: nothing was changed.
        """
        if segment_events < 1:
            raise ValueError(f"segment_events must be at least 1, not {segment_events}")
        store = cls(Path(path), sled_id or None, segment_events, Retention(retention_events, retention_days))
        store._on_step = on_step or _pass
        return store

    def _clock_ms(self) -> int:
        return _now_ms()

    # --- events

    async def append_event(self, event: PipelineEvent) -> int:
        """Put one event into the log, durably, and return its seq. A gap sentinel is accepted here only.

        Raises:
            InvalidEvent, StoreFull, StoreUnavailable: nothing was stored.
        """
        validate_event(event, allow_gap=True)
        (appended,) = await self._open_event_log.append((EventBatch((event,)),))
        return appended.seqs[0]

    async def append_events(self, events: Sequence[PipelineEvent]) -> list[int]:
        """Put events into the log in one commit, all or nothing, and return their seqs.

        Raises:
            InvalidEvent, StoreFull, StoreUnavailable: nothing was stored.
        """
        (appended,) = await self.append_batches((EventBatch(tuple(events)),))
        return list(appended.seqs)

    async def append_batches(self, batches: Sequence[EventBatch]) -> list[Appended]:
        """Put batches into the log in one commit, all or nothing, but for those that are duplicates.

        Raises:
            InvalidEvent: its `field` names the event by its place among all events, as in `[3].story_id`.
            StoreFull, StoreUnavailable: nothing was stored.
        """
        validate_batches(batches)
        return await self._open_event_log.append(batches)

    async def read_events(self, after: int = 0, limit: int = 1000) -> list[RecordedEvent]:
        """Read at most `limit` events with a seq above `after`, oldest first; those that retention took are skipped."""
        event_log = self._open_event_log
        first = max(after + 1, event_log.oldest)
        return await event_log.read(first, first + limit - 1)

    # --- sessions

    async def write_llm_session(self, session_id: str, persona_name: str, scope: str) -> None:
        """Make a session, or change its persona and scope; never its marks.

        Raises:
            UnknownScope: the scope is not "single-sled".
        """
        await self._unbroken(self._open_sessions.write(well_formed(session_id), well_formed(persona_name), scope))

    async def read_llm_session(self, session_id: str) -> LlmSessionView | None:
        """Read a session; `None` when there is none."""
        return await self._open_sessions.read(well_formed(session_id))

    async def assemble_and_advance_session(self, session_id: str) -> list[str]:
        """Take every event that the session has not seen, as audit lines, and advance its marks, atomically.

        There is no cap and no transcript entry. `[]` when nothing is new: then nothing is written.
        """
        return await self._unbroken(self._open_sessions.assemble_and_advance(well_formed(session_id)))

    async def begin_turn(
        self,
        session_id: str,
        key: str,
        text: str,
        context: Sequence[Message] = (),
        said: Sequence[Message] = (),
        max_lines: int = 200,
        keep: Keep | None = None,
        render: Callable[[Message], str] = attrgetter("text"),
    ) -> Turn:
        """Begin the turn `key`: unseen events, advanced marks and the user's entry in one commit.

        `said` are the messages whose text stands in `text`; `context` are messages that are folded in as context, as
        `render` makes them; both as they were read. `keep` is the room's filter over events. A turn that was begun
        before comes back as it was then, with `attempt` one higher, or with its `reply` if it is complete.

        Raises:
            MessageChanged: a message was edited, taken back or settled since it was read; nothing was begun.
        """
        names = (well_formed(session_id), well_formed(key))
        asked = Turn(*names, well_formed(text), context=[well_formed(render(each)) for each in context])
        turn = await self._unbroken(self._open_sessions.begin_turn(asked, context, said, max(0, max_lines), keep))
        await self._on_step("begin")
        return turn

    async def complete_turn(
        self, turn: Turn, reply: str, deliveries: Sequence[Delivery] = (), failed: bool = False
    ) -> None:
        """Complete a turn: reply, deliveries and settled messages in one commit. A repetition changes nothing.

        Raises:
            UnknownTurn: the turn was never begun here.
        """
        if await self._unbroken(self._open_sessions.complete_turn(turn, reply, deliveries, failed)):
            await self._on_step("complete")

    async def park_turn(self, turn: Turn) -> None:
        """Break off an open turn in order: the attempt that is given up does not count as a death."""
        await self._unbroken(self._open_sessions.park_turn(turn.session_id, turn.key))

    async def read_transcript(self, session_id: str) -> list[TranscriptEntry]:
        """Read the entries that the session keeps, oldest first."""
        return await self._open_sessions.read_transcript(well_formed(session_id))

    async def roll_session(self, session_id: str, keep_entries: int) -> None:
        """Go on with at most the newest `keep_entries` entries; the rest leaves the file.

        Raises:
            TurnOpen: a turn has no reply yet.
        """
        await self._unbroken(self._open_sessions.roll(well_formed(session_id), keep_entries))

    async def redact_session(self, session_id: str, strike: Strike) -> int:
        """Roll with what was taken back struck out; returns how many messages that were. The old text leaves the file.

        Raises:
            TurnOpen: a turn has no reply yet; nothing was changed.
        """
        return await self._unbroken(self._open_sessions.redact(well_formed(session_id), strike))

    async def sessions_to_redact(self) -> list[str]:
        """Read which sessions hold text that was taken back."""
        return await self._read(inbox.sessions_to_redact)

    async def move_session(self, old: str, new: str) -> bool:
        """Make the session `old` the session `new`, in one commit: marks, entries, turns and waiting messages.

        Returns whether that was done: not where there is no old session, or already a new one. An open turn goes
        along: to complete it under the old name raises `UnknownTurn`.
        """
        return await self._unbroken(self._open_sessions.move(well_formed(old), well_formed(new)))

    # --- inbox

    async def admit(
        self,
        messages: Sequence[Message],
        cursor: str | None = None,
        edits: Sequence[Edit] = (),
        redactions: Sequence[str] = (),
    ) -> list[Message]:
        """Take in what one sync response brought, together with its token; returns the messages that were new."""

        def admit(connection: sqlite3.Connection) -> list[Message]:
            new = inbox.insert(connection, messages, _now_ms())
            inbox.edit(connection, edits)
            inbox.redact(connection, redactions)
            if cursor is not None:
                settings.write(connection, {settings.CURSOR: cursor})
            return new

        new = await self._write(admit)
        if messages:
            log.info("messages_admitted", new=len(new), known=len(messages) - len(new))
        await self._on_step("admit")
        return new

    async def read_cursor(self) -> str | None:
        """Read the token that the newest `admit` stored."""
        return await self.read_setting(settings.CURSOR)

    async def waiting_sessions(self) -> list[str]:
        """Read which sessions have a message that waits for an answer, the longest waiting first."""
        return await self._read(inbox.waiting_sessions)

    async def waiting(self, session_id: str) -> list[Message]:
        """Read a session's unsettled messages, oldest first."""
        return await self._read(lambda connection: inbox.waiting(connection, well_formed(session_id)))

    async def settle(self, keys: Sequence[str], outcome: str, deliveries: Sequence[Delivery] = ()) -> None:
        """Settle messages without a turn, with what is said about it, in one commit."""

        def settle(connection: sqlite3.Connection) -> int:
            outbox.insert(connection, deliveries, _now_ms())
            return inbox.settle(connection, [well_formed(key) for key in keys], outcome)

        settled = await self._write(settle)
        log.info("messages_settled", outcome=outcome, count=settled, deliveries=len(deliveries))

    # --- outbox

    async def due_deliveries(self) -> list[Delivery]:
        """Read the oldest unsent delivery of each session, the longest waiting first."""
        return await self._read(outbox.due)

    async def delivery_attempted(self, delivery_id: str) -> None:
        """Count an attempt to send, before it is made."""
        await self._write(lambda connection: outbox.attempted(connection, delivery_id, time.time()))

    async def delivery_sent(self, delivery_id: str, event_id: str) -> None:
        """Note that the homeserver has the delivery, under this event id."""
        await self._write(lambda connection: outbox.settle(connection, delivery_id, "sent", event_id))

    async def delivery_readdressed(self, delivery_id: str, session_id: str, content: str) -> None:
        """Have a delivery that its room has refused, so that it is not there, sent into another, as a new one."""
        await self._write(lambda connection: outbox.readdress(connection, delivery_id, session_id, content))

    async def delivery_dropped(self, delivery_id: str, reason: str) -> None:
        """Give a delivery up, for a reason that stays in its row."""
        await self._write(lambda connection: outbox.settle(connection, delivery_id, reason, None))
        log.warning("delivery_dropped", delivery=delivery_id, reason=reason)

    # --- settings and care

    async def read_setting(self, name: str) -> str | None:
        """Read a small durable fact of the bot's; `None` when it was never written."""
        return await self._read(lambda connection: settings.read(connection, name))

    async def write_settings(self, values: Mapping[str, str]) -> None:
        """Write small durable facts of the bot's, in one commit."""
        await self._write(lambda connection: settings.write(connection, values))

    async def statistics(self) -> Statistics:
        """Read the counts and ages that monitoring asks for; cheap, however large the log is."""
        return await measure(self._database, self._event_log)

    async def housekeep(self) -> None:
        """Apply retention by age, and forget settled rows that are too old to come again."""
        pruned = await self._write(lambda connection: prune(connection, _now_ms()))
        await self._unbroken(self._open_event_log.housekeep())
        log.info("housekeeping_done", pruned=pruned)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
