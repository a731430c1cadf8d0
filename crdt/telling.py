"""What a session is told: the events past its marks, as lines. The log does the arithmetic; nothing is scanned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from crdt.audit import audit_line, fold_line, gap_line
from crdt.event_log import EventLog
from crdt.marks import SeqRange, Unseen, unseen
from crdt.model import GAP_PIPELINE_EVENT, PipelineEvent, RecordedEvent

Keep = Callable[[RecordedEvent], bool]

FILTERED_READ_FACTOR = 5
"""With a filter, this many times `max_lines` of the newest events are read in search of `max_lines` that pass it."""


@dataclass(frozen=True, slots=True)
class Telling:
    """The lines for one turn, and the mark once they are told; `mark` is `None` when nothing is new."""

    lines: list[str] = field(default_factory=list)
    mark: int | None = None
    entries: int = 0
    gaps: int = 0


async def tell(log: EventLog, mark: int, max_lines: int | None = None, keep: Keep | None = None) -> Telling:
    """Collect what lies past `mark`: the gap line, the fold line, the newest events.

    `keep` is the room's filter; the mark passes what it leaves out. Gap sentinels pass every filter: what was lost
    could have been meant for the room.
    """
    plan = unseen(mark, oldest=log.oldest, head=log.head, max_shown=max_lines)
    given = log.recent(plan.shown.first, plan.shown.last) if plan.shown and keep is None else None
    if given is not None:
        return _told(plan, plan.folded, given)
    plan, events = await _read_unseen(log, mark, max_lines, keep)
    folded = plan.folded
    if keep is not None:
        events = [event for event in events if event.pipeline_event == GAP_PIPELINE_EVENT or keep(event)]
        if max_lines is not None and len(events) > max_lines:
            first = folded.first if folded else events[0].event_seq
            events = events[len(events) - max_lines :]
            folded = SeqRange(first, events[0].event_seq - 1)
    return _told(plan, folded, events)


def _told(plan: Unseen, folded: SeqRange | None, events: Sequence[PipelineEvent | RecordedEvent]) -> Telling:
    lines = [gap_line(plan.dropped)] if plan.dropped else []
    if folded:
        lines.append(fold_line(folded))
    lines += [audit_line(event) for event in events]
    gaps = [event.pipeline_event for event in events].count(GAP_PIPELINE_EVENT) + (plan.dropped is not None)
    return Telling(lines, plan.mark, len(events) + (len(folded) if folded else 0), gaps)


async def _read_unseen(
    log: EventLog, mark: int, max_lines: int | None, keep: Keep | None
) -> tuple[Unseen, list[RecordedEvent]]:
    max_read = max_lines if max_lines is None or keep is None else max_lines * FILTERED_READ_FACTOR
    while True:
        plan = unseen(mark, oldest=log.oldest, head=log.head, max_shown=max_read)
        events = await log.read(plan.shown.first, plan.shown.last) if plan.shown else []
        # Retention may have taken a segment while another was read: then the plan is out of date.
        if plan.shown is None or plan.shown.first >= log.oldest:
            return plan, events
