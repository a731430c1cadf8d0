"""What the rows about the store share: events of a usual size, logs of a given size, quiet."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import structlog

from crdt import PipelineEvent, Store


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


def resident_mb() -> float:
    """Resident memory of this process."""
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kilobytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(kilobytes) / 1024
