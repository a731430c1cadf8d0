"""Appends that wait to be committed: which are refused, which go together, which of their batches are new. Pure."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from crdt.audit import validate_event
from crdt.errors import InvalidEvent
from crdt.model import Appended, EventBatch
from crdt.transcript import well_formed

MAX_EVENTS_PER_COMMIT = 2000
"""Events that share a commit, beyond the first caller's own: bounds how long the first caller waits for the last."""


@dataclass(slots=True)
class Append:
    """What one caller wants in the log, and where the caller waits for what became of it."""

    batches: Sequence[EventBatch]
    done: asyncio.Future[list[Appended]]


def take(queue: list[Append]) -> list[Append]:
    """Take out of the queue what shares a commit; who has stopped waiting by now is left out."""
    taken: list[Append] = []
    events = count = 0
    for waiting in queue:
        brought = sum([len(batch.events) for batch in waiting.batches])
        if taken and events + brought > MAX_EVENTS_PER_COMMIT:
            break
        count += 1
        if not waiting.done.done():
            taken.append(waiting)
            events += brought
    del queue[:count]
    return taken


def allot(taken: Sequence[Append], known: set[str], next_seq: int) -> tuple[list[EventBatch], list[list[Appended]]]:
    """Decide which batches are new, and the seqs of their events; a key counts from its first batch on."""
    fresh: list[EventBatch] = []
    outcomes: list[list[Appended]] = []
    for waiting in taken:
        outcome: list[Appended] = []
        for batch in waiting.batches:
            if batch.dedupe_keys:
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


def validate_batches(batches: Sequence[EventBatch]) -> None:
    """Refuse the whole if one event is refused; with several events the error's field names which one."""
    events = [event for batch in batches for event in batch.events]
    for key in (key for batch in batches for key in batch.dedupe_keys):
        if not isinstance(key, str) or key != well_formed(key):
            raise InvalidEvent("dedupe_keys", f"must be strings of Unicode characters, not {key!r}")
    for index, event in enumerate(events):
        try:
            validate_event(event)
        except InvalidEvent as error:
            if len(events) == 1:
                raise
            raise InvalidEvent(f"[{index}].{error.field}", error.problem) from None
