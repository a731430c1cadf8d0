"""What the rows about the store share: events of a usual size, logs of a given size, quiet."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import structlog

from benchmarks.commits import WAL_PAGES
from crdt import PipelineEvent, Store

PAGES_OF_AN_APPEND = 3


def quiet() -> None:
    """Keep the store's log lines out of the measurement."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


def event(number: int) -> PipelineEvent:
    """An event of a usual size."""
    return PipelineEvent(f"story-{number % 997}", "2_current", "3_qa", "GatesStarted")


async def fill(store: Store, events: int, first: int = 0) -> None:
    """Append events, a thousand to a call."""
    for start in range(first, first + events, 1000):
        await store.append_events([event(number) for number in range(start, min(start + 1000, first + events))])


async def settle_in(store: Store, *told: str) -> None:
    """Append until the WAL has its full size; the rooms that are `told` have seen these events."""
    for number in range(WAL_PAGES // PAGES_OF_AN_APPEND + 1):
        await store.append_event(event(number))
    for room in told:
        await store.assemble_and_advance_session(room)


def resident_mb() -> float:
    """Resident memory of this process."""
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kilobytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(kilobytes) / 1024
