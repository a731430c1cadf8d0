"""Appends that wait to be committed: which of them go together, which of their batches are new. Pure."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from crdt.model import Appended, EventBatch

MAX_EVENTS_PER_COMMIT = 2000
"""Events that share a commit, beyond the first caller's own: bounds how long the first caller waits for the last."""


@dataclass(slots=True)
class Append:
    """What one caller wants in the log, and where the caller waits for what became of it."""

    batches: Sequence[EventBatch]
    done: asyncio.Future[list[Appended]]
    events: int = field(init=False)
    """How many it brings."""

    def __post_init__(self) -> None:
        self.events = sum([len(batch.events) for batch in self.batches])


def take(queue: list[Append]) -> list[Append]:
    """Take out of the queue what shares a commit; who has stopped waiting by now is left out."""
    taken: list[Append] = []
    events = count = 0
    for waiting in queue:
        if taken and events + waiting.events > MAX_EVENTS_PER_COMMIT:
            break
        count += 1
        if not waiting.done.done():
            taken.append(waiting)
            events += waiting.events
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
