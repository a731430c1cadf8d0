"""Where the time of rows 1, 2 and 4 goes: the parts of an append, of a begun turn and of an opening, as they happen.

`python -m benchmarks.profile [--folder FOLDER]`. Each part is timed inside the running store, without what other parts
take within it; what is left of the whole is the last line. The timers themselves cost a few microseconds a call.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import sqlite3
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar, cast
from unittest.mock import patch

from benchmarks.commits import RawCommits
from benchmarks.stores import event, fill, quiet, settle_in
from benchmarks.turns import NEW_EVENTS, ROOM, prepared
from crdt import Store
from crdt.database import Database, _Connection

T = TypeVar("T")

CALLS = 500
OPENINGS = 15
LOADED = 100_000

LOOP = "event loop, futures, locks, queues: the rest"
OPENING = "threads, connections, pragmas, crossings: the rest"
CROSSING = "to the database's thread and back"
STATEMENTS = "statements but BEGIN and COMMIT, with their checksums"

PARTS_OF_A_CALL = {
    "crdt.store.validate_event": "checks and JSON",
    "crdt.event_log.encode_event": "checks and JSON",
    "crdt.transcript.encode_entry": "checks and JSON",
    "crdt.documents.Document.change": "CRDT document: change and update",
    "crdt.sessions.Sessions._mark": "marks, reading and rendering events",
    "crdt.sessions.tell": "marks, reading and rendering events",
    "crdt.database.Database._transact": STATEMENTS,
    "crdt.owner.OwnerLock.write_witness": "commit witness",
}
PARTS_OF_AN_OPENING = {
    "crdt.soundness.pages": "integrity_check",
    "crdt.soundness.check_tables": "tables and checksums of short rows",
    "crdt.soundness.rows": "tables and checksums of short rows",
    "crdt.documents.read_document": "newest segment: rows and their checksums",
    "crdt.documents.build_document": "newest segment: CRDT document",
    "crdt.event_log.EventLog.read": "the newest ten events",
}


class Clock:
    """Seconds by part, of one call, without those of parts inside of parts."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self._running = threading.local()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what the block takes."""
        inner: list[float] = self._running.__dict__.setdefault("inner", [])
        inner.append(0.0)
        started = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - started
            self.spent[name] += took - inner.pop()
            if inner:
                inner[-1] += took

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted as a part."""

        def call(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*arguments, **named)

        async def call_async(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return await function(*arguments, **named)

        return call_async if inspect.iscoroutinefunction(function) else call


class TimedConnection:
    """A connection whose BEGIN and COMMIT are parts of their own."""

    def __init__(self, connection: sqlite3.Connection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock

    def execute(self, statement: str, *arguments: Any) -> Any:
        """As the connection does."""
        word = statement.split(maxsplit=1)[0]
        with self._clock.part(word if word in ("BEGIN", "COMMIT") else STATEMENTS):
            return self._connection.execute(statement, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@contextmanager
def timing(clock: Clock, parts: dict[str, str]) -> Iterator[None]:
    """Count these functions as parts, whoever calls them."""
    with ExitStack() as patches:
        for target, name in parts.items():
            patches.enter_context(patch(target, clock.timed(name, resolve_name(target))))
        yield


@contextmanager
def timing_commits(clock: Clock) -> Iterator[None]:
    """Count the crossings to the writer's thread and back, BEGIN, and COMMIT."""
    post, commit, committed = _Connection.post, Database._commit, Database._committed
    left_at = [0.0]

    def timed_post(self: Any, work: Any) -> None:
        left_at[0] = time.perf_counter()
        post(self, work)

    def timed_commit(self: Any, loop: Any, batch: Any, connection: Any) -> None:
        clock.spent[CROSSING] += time.perf_counter() - left_at[0]
        commit(self, loop, batch, cast(sqlite3.Connection, TimedConnection(connection, clock)))
        left_at[0] = time.perf_counter()

    def timed_committed(self: Any, *arguments: Any) -> None:
        clock.spent[CROSSING] += time.perf_counter() - left_at[0]
        committed(self, *arguments)

    with (
        patch.object(_Connection, "post", timed_post),
        patch.object(Database, "_commit", timed_commit),
        patch.object(Database, "_committed", timed_committed),
    ):
        yield


class Calls:
    """What many calls took: each whole, and each by its parts."""

    def __init__(self, rest: str) -> None:
        self._rest = rest
        self._wholes: list[float] = []
        self._parts: list[dict[str, float]] = []

    def add(self, whole: float, parts: dict[str, float]) -> None:
        """Add one call."""
        self._wholes.append(whole)
        self._parts.append(parts | {self._rest: whole - sum(parts.values())})

    def print(self, title: str, unit: float | None) -> None:
        """Print the medians, the longest part first; with `unit`, also how many times that each is."""
        whole = statistics.median(self._wholes)
        names = {name for parts in self._parts for name in parts}
        medians = {name: statistics.median(parts.get(name, 0.0) for parts in self._parts) for name in names}
        print(f"\n{title}")
        for name, seconds in sorted(medians.items(), key=lambda each: -each[1]):
            print(_line(name, seconds, whole, unit))
        print(_line("the whole", whole, whole, unit))


def _line(name: str, seconds: float, whole: float, unit: float | None) -> str:
    times = f"{seconds / unit:8.2f} raw commits" if unit else ""
    return f"  {name:<56}{seconds * 1e6:8.0f} µs {seconds / whole:6.0%}{times}"


async def calls(folder: Path) -> None:
    """Appends and turns, each beside a raw commit."""
    appends, begun, raws = Calls(LOOP), Calls(LOOP), []
    clock = Clock()
    path = await prepared(folder / "log.db", 30_000)
    async with Store.open(path) as store:
        await settle_in(store, ROOM)
        with RawCommits.into(folder / "raw.db") as raw, timing(clock, PARTS_OF_A_CALL), timing_commits(clock):
            for number in range(CALLS):
                raws.append(raw.one())
                await _timed(clock, appends, store.append_event(event(number)))
                await store.append_events([event(number + place) for place in range(NEW_EVENTS - 1)])
                turn = await _timed(clock, begun, store.begin_turn(ROOM, f"$turn-{number}", "what happened?"))
                await store.complete_turn(turn, "A short answer.")
    unit = statistics.median(raws)
    print(f"a raw commit of one row, in the caller's thread: {unit * 1e6:.0f} µs")
    appends.print("append_event, one caller (row 1)", unit)
    begun.print(f"begin_turn, {NEW_EVENTS} new events (row 2)", unit)


async def openings(folder: Path) -> None:
    """Openings of a log of 100,000 events, until the newest ten are read."""
    path = folder / "loaded.db"
    async with Store.open(path) as store:
        await fill(store, LOADED)
    found, clock = Calls(OPENING), Clock()
    with timing(clock, PARTS_OF_AN_OPENING):
        for _ in range(OPENINGS):
            store = await _timed(clock, found, _opened(path))
            await store.close()
    found.print(f"restart with {LOADED:,} events, to the newest {NEW_EVENTS} (row 4)", None)


async def _opened(path: Path) -> Store:
    store = await Store.open(path).__aenter__()
    await store.read_events(after=LOADED - NEW_EVENTS, limit=NEW_EVENTS)
    return store


async def _timed(clock: Clock, into: Calls, work: Coroutine[Any, Any, T]) -> T:
    clock.spent.clear()
    started = time.perf_counter()
    result = await work
    into.add(time.perf_counter() - started, dict(clock.spent))
    return result


async def main(folder: Path) -> None:
    """Print all three."""
    await calls(folder)
    await openings(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".cache"), help="on which disk to measure")
    asked = parser.parse_args()
    asked.folder.mkdir(exist_ok=True)
    quiet()
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="profile-") as made:
        asyncio.run(main(Path(made)))
