"""Whether the store's cost stays flat: in the size of the log, in the age of a session, and in memory.

`python -m benchmarks.flatness [--quick]`. What is compared is measured in turns within one run, so that a noisy machine
touches both sides alike; each figure is a median. The limits are those that the store promises.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from crdt import PipelineEvent, Store, Turn

SMALL_LOG = 1_000
BIG_LOG = 300_000
NEW_EVENTS = 10
YOUNG_TURNS = 100
OLD_TURNS = 10_000
RSS_FROM = 10_000
RSS_TO = 1_000_000

LIMITS = {
    "begin_turn, big log to small log": 1.2,
    "turn, old session to young session": 1.3,
    "reopening, seconds": 3.0,
    "memory growth, MB": 50.0,
}

Open = Callable[[Path], Store]


def quiet() -> None:
    """Keep the store's log lines out of the measurement."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


def event(number: int) -> PipelineEvent:
    """An event of a usual size."""
    return PipelineEvent(f"story-{number % 997}", "2_current", "3_qa", "GatesStarted")


async def fill(store: Store, until: int) -> None:
    """Append events up to a seq, a thousand to a call."""
    recorded = await store.read_events(after=0, limit=1)
    head = store._event_log.head if recorded else 0
    while head < until:
        count = min(1000, until - head)
        await store.append_events([event(head + number) for number in range(count)])
        head += count


async def timed_begin(store: Store, session_id: str, number: int) -> tuple[float, Turn]:
    """Begin one turn with new events; seconds of begin_turn alone."""
    await store.append_events([event(number + new) for new in range(NEW_EVENTS)])
    started = time.perf_counter()
    turn = await store.begin_turn(session_id, f"$begin-{number}", "what happened?")
    seconds = time.perf_counter() - started
    assert len(turn.lines) == NEW_EVENTS
    return seconds, turn


async def compare_logs(folder: Path, samples: int) -> dict[str, Any]:
    """begin_turn with 10 new events, in a small log and in a big one, in turns."""
    async with Store.open(folder / "small.db") as small, Store.open(folder / "big.db") as big:
        await fill(small, SMALL_LOG)
        await fill(big, BIG_LOG)
        took: tuple[list[float], list[float]] = ([], [])
        for number in range(samples):
            for store, seconds in zip((small, big), took, strict=True):
                if number == 0:
                    await store.assemble_and_advance_session("!room")
                spent, turn = await timed_begin(store, "!room", number)
                await store.complete_turn(turn, "A short answer.")
                seconds.append(spent)
    return compared("begin_turn, big log to small log", took)


async def compare_ages(folder: Path, samples: int, old_turns: int) -> dict[str, Any]:
    """A whole turn in a session of 100 turns and in one of 10,000, in turns."""
    async with Store.open(folder / "ages.db") as store:
        await whole_turns(store, "!old", 0, old_turns)
        took: tuple[list[float], list[float]] = ([], [])
        # Each young session lives through its turns 51 to 150, so that both sides meet as many rolls.
        for session in range(max(1, samples // 100)):
            young = f"!young-{session}"
            await whole_turns(store, young, 0, YOUNG_TURNS - 50)
            for number in range(100):
                for room, first, seconds in (
                    (young, YOUNG_TURNS - 50, took[0]),
                    ("!old", old_turns + session * 100, took[1]),
                ):
                    started = time.perf_counter()
                    await whole_turns(store, room, first + number, 1)
                    seconds.append(time.perf_counter() - started)
    return compared("turn, old session to young session", took) | {"old_turns": old_turns}


async def whole_turns(store: Store, room: str, first: int, count: int) -> None:
    """Begin and complete turns."""
    for number in range(first, first + count):
        turn = await store.begin_turn(room, f"${room}-{number}", "what happened?")
        await store.complete_turn(turn, "Nothing since you asked.")


def compared(what: str, took: tuple[Sequence[float], Sequence[float]]) -> dict[str, Any]:
    """Two sides of a comparison and the ratio of their medians."""
    before, after = (statistics.median(side) for side in took)
    return {
        "figure": what,
        "value": after / before,
        "before_ms": before * 1e3,
        "after_ms": after * 1e3,
        "samples": len(took[0]),
    }


async def reopen(folder: Path, events: int, times: int = 5) -> dict[str, Any]:
    """Open a closed database of many events, and read its newest."""
    path = folder / "reopened.db"
    async with Store.open(path) as store:
        await fill(store, events)
    took = []
    for _ in range(times):
        started = time.perf_counter()
        async with Store.open(path) as store:
            await store.read_events(after=events - 1)
            took.append(time.perf_counter() - started)
    return {"figure": "reopening, seconds", "value": statistics.median(took), "events": events}


async def grow(folder: Path, until: int) -> dict[str, Any]:
    """Resident memory while a log grows, in a process that does nothing else."""
    async with Store.open(folder / "grown.db") as store:
        await fill(store, RSS_FROM)
        await store.assemble_and_advance_session("!room")
        before = resident_mb()
        while (head := store._event_log.head) < until:
            await fill(store, min(head + RSS_FROM, until))
            await store.begin_turn("!room", f"${head}", "what happened?")
        await store.housekeep()
        after = resident_mb()
    return {
        "figure": "memory growth, MB",
        "value": after - before,
        "before_mb": before,
        "after_mb": after,
        "events": until,
    }


def resident_mb() -> float:
    """Resident memory of this process."""
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kilobytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(kilobytes) / 1024


def measure(name: str, quick: bool) -> dict[str, Any]:
    """Run one measurement, in a process of its own."""
    quiet()
    folder = Path(tempfile.mkdtemp(prefix="musher-flatness-"))
    measurements = {
        "logs": lambda: compare_logs(folder, samples=200 if quick else 500),
        "ages": lambda: compare_ages(folder, samples=300 if quick else 1000, old_turns=2_000 if quick else OLD_TURNS),
        "reopen": lambda: reopen(folder, BIG_LOG if quick else RSS_TO),
        "grow": lambda: grow(folder, BIG_LOG if quick else RSS_TO),
    }
    try:
        return asyncio.run(measurements[name]())
    finally:
        shutil.rmtree(folder)


def main() -> int:
    """Print each figure as one JSON line; exit 1 if one is beyond its limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flatness", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="fewer samples and smaller logs: about a third of the time"
    )
    quick: bool = parser.parse_args().quick
    beyond = 0
    context = multiprocessing.get_context("spawn")
    for name in ("logs", "ages", "reopen", "grow"):
        with context.Pool(1) as pool:
            found = pool.apply(measure, (name, quick))
        limit = LIMITS[found["figure"]]
        beyond += found["value"] > limit
        rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}
        print(json.dumps(rounded | {"limit": limit, "holds": found["value"] <= limit}), flush=True)
    return 1 if beyond else 0


if __name__ == "__main__":
    raise SystemExit(main())
