"""Row 3: the same turn in the algorithm that the project starts from."""

from __future__ import annotations

import gc
import time
from pathlib import Path

from benchmarks.figure import Figure, Round, milliseconds, ratio
from benchmarks.scanning_store import Entry, ScanningStore
from benchmarks.stores import event
from benchmarks.turns import NEW_EVENTS, ROOM, one_turn, prepared
from crdt import Store

EVENTS = 30_000
THEIR_TURNS = 3
OUR_TURNS = 50


def _entry(number: int) -> Entry:
    made = event(number)
    return {
        "story_id": made.story_id,
        "from_stage": made.from_stage,
        "to_stage": made.to_stage,
        "pipeline_event": made.pipeline_event,
    }


async def measure(folder: Path, quick: bool) -> list[Figure]:
    """The row: each ratio is theirs / ours, how many times faster a turn begins here."""
    rounds = 3 if quick else 7
    theirs = ScanningStore(folder / "theirs.db", "sled-1")
    await theirs.append([_entry(number) for number in range(EVENTS)])
    await theirs.assemble_and_advance(ROOM)
    path = await prepared(folder / "ours.db", EVENTS)
    measured: list[Round] = []
    async with Store.open(path) as ours:
        for _ in range(rounds):
            took: tuple[list[float], list[float]] = ([], [])
            # In blocks: a scan leaves the processor's caches and the garbage collector full, which is not ours to pay.
            took[0].extend([await _their_turn(theirs) for _ in range(THEIR_TURNS)])
            gc.collect()
            took[1].extend([await one_turn(ours) for _ in range(OUR_TURNS)])
            measured.append(took)
    theirs.close()
    return [
        ratio(
            *("3", f"begin a turn at {EVENTS:,} events, times faster", "one document, three scans a message", measured),
            show=milliseconds,
            at_least=100,
            swapped=True,
        )
    ]


async def _their_turn(store: ScanningStore) -> float:
    await store.append([_entry(number) for number in range(NEW_EVENTS)])
    started = time.perf_counter()
    lines = await store.assemble_and_advance(ROOM)
    seconds = time.perf_counter() - started
    assert len(lines) == NEW_EVENTS
    return seconds
