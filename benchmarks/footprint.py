"""Row 5: the store alone: from a closed file to ready, and the memory that it takes, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from benchmarks.figure import Figure, quantity
from benchmarks.stores import fill, quiet, resident_mb
from crdt import Store

EVENTS = 1_000_000
SESSIONS = 5_000
AT_ONCE = 100
GROWN_FROM = 10_000
WORKED_ON = 300
"""Sessions that talk after the restart: more than the store keeps in memory."""


async def prepare(path: Path, events: int, sessions: int) -> None:
    """Make a log, and sessions that have each had a turn."""
    async with Store.open(path) as store:
        await fill(store, events)
        for first in range(0, sessions, AT_ONCE):
            await asyncio.gather(*(_turn(store, f"!room-{first + place}", "first") for place in range(AT_ONCE)))


async def _turn(store: Store, room: str, key: str) -> None:
    turn = await store.begin_turn(room, f"${key}-{room}", "what happened?", max_lines=20)
    await store.complete_turn(turn, "A short answer.")


async def restart(path: Path, sessions: int) -> dict[str, float]:
    """In this process: open, begin a turn, work on many sessions; seconds, and resident MB at each step."""
    bare = resident_mb()
    started = time.perf_counter()
    async with Store.open(path) as store:
        await _turn(store, "!room-0", "after-restart")
        seconds = time.perf_counter() - started
        ready = resident_mb()
        for number in range(min(sessions, WORKED_ON)):
            await _turn(store, f"!room-{number}", "again")
        return {"seconds": seconds, "bare": bare, "ready": ready, "working": resident_mb()}


async def grow(path: Path, events: int) -> dict[str, float]:
    """In this process: append events, with a room that is told of them now and then; MB that it grows by."""
    async with Store.open(path) as store:
        await fill(store, GROWN_FROM)
        await store.assemble_and_advance_session("!room")
        await store.housekeep()
        before = resident_mb()
        for head in range(GROWN_FROM, events, GROWN_FROM):
            await fill(store, GROWN_FROM, head)
            await _turn(store, "!room", str(head))
        await store.housekeep()
        return {"grown": resident_mb() - before}


async def _in_a_process(what: str, path: Path, count: int) -> dict[str, float]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.footprint", what, str(path), str(count)), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await child.communicate()
    assert child.returncode == 0
    found: dict[str, float] = json.loads(output)
    return found


async def measure(folder: Path, quick: bool) -> list[Figure]:
    """The row."""
    events, sessions = (100_000, 500) if quick else (EVENTS, SESSIONS)
    sizes = {"all": (events, sessions), "events": (events, 1), "sessions": (0, sessions), "nothing": (0, 1)}
    for name, (some_events, some_sessions) in sizes.items():
        await prepare(folder / f"{name}.db", some_events, some_sessions)
    grown = await _in_a_process("grow", folder / "grown.db", events)
    found = {
        name: [await _in_a_process("restart", folder / f"{name}.db", each[1]) for _ in range(3 if quick else 5)]
        for name, each in sizes.items()
    }
    nothing = found["nothing"][0]["working"]
    size = f"{events:,} events, {sessions:,} sessions"
    return [
        quantity("5", f"restart to a begun turn, {size}", [each["seconds"] for each in found["all"]], "s", 1.0),
        quantity("5", f"memory of the process, {size}", [each["working"] for each in found["all"]], "MB", 120),
        quantity("5", f"growth of a running process by {events:,} events", [grown["grown"]], "MB", 50),
        quantity("5", f"memory by {events:,} events", [each["working"] - nothing for each in found["events"]], "MB"),
        quantity("5", f"memory by {sessions:,} sessions", [e["working"] - nothing for e in found["sessions"]], "MB"),
    ]


if __name__ == "__main__":
    quiet()
    work = {"restart": restart, "grow": grow}[sys.argv[1]]
    print(json.dumps(asyncio.run(work(Path(sys.argv[2]), int(sys.argv[3])))))
