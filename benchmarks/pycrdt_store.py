"""Row 4: pycrdt-store's SQLiteYStore, writing and loading the same events."""

from __future__ import annotations

import importlib
import itertools
import json
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pycrdt import Array, Doc, TransactionEvent

from benchmarks.append import CALLERS, rate
from benchmarks.figure import Figure, Round, milliseconds, per_second, ratio, timed
from benchmarks.stores import event, fill
from crdt import Store
from crdt.log_entries import decode_event, encode_event

PEER = "pycrdt-store 0.1.5"
LOADED = 100_000
NEW_EVENTS = 10
BLOCK = 100
"""Appends in a row of each side: after so many their store writes the whole document anew, and threads that are woken
in turns drive each other from core to core."""
_AT_MS = 1_790_000_000_000


class PeerLog:
    """An event log that whoever has pycrdt and its store would write: an update per append, each stored by `write`."""

    def __init__(self, store: Any) -> None:
        self.doc: Doc[Any] = Doc()
        self.events = self.doc.get("events", type=Array)
        self._store = store
        self._updates: list[bytes] = []
        self._subscription = self.doc.observe(self._collect)

    def _collect(self, change: TransactionEvent) -> None:
        self._updates.append(change.update)

    def append(self, *numbers: int) -> bytes:
        """Put events into the document; the update that tells it."""
        self._updates.clear()
        with self.doc.transaction():
            self.events.extend([encode_event(number, _AT_MS, event(number)) for number in numbers])
        return self._updates[0]

    async def append_stored(self, number: int) -> None:
        """Put one event into the document and into the store."""
        await self._store.write(self.append(number))


@asynccontextmanager
async def peer_store(path: Path) -> AsyncIterator[Any]:
    """Their store over a file, with all its defaults."""
    kind: Any = type("PeerStore", (importlib.import_module("pycrdt.store").SQLiteYStore,), {"db_path": str(path)})
    async with kind("events") as store:
        await store.db_initialized.wait()
        yield store


async def writing(folder: Path, rounds: int, appends: int) -> Figure:
    """Events appended one by one by one caller, each durable when its append returns."""
    measured: list[Round] = []
    async with Store.open(folder / "ours.db") as ours, peer_store(folder / "theirs.db") as store:
        theirs = PeerLog(store)
        numbers = itertools.count(1)
        for _ in range(rounds):
            took: tuple[list[float], list[float]] = ([], [])
            for _ in range(appends // BLOCK):
                block = list(itertools.islice(numbers, BLOCK))
                took[0].extend([await timed(theirs.append_stored(number)) for number in block])
                took[1].extend([await timed(ours.append_event(event(number))) for number in block])
            # The sum: what takes long once in a hundred appends is part of the price.
            measured.append(([sum(took[0]) / appends], [sum(took[1]) / appends]))
    return ratio(
        *("4", f"append {rounds * appends:,} events one by one, times faster", PEER, measured),
        show=milliseconds,
        at_least=3,
        swapped=True,
    )


async def writing_at_once(folder: Path, rounds: int, appends: int) -> Figure:
    """Events appended by many callers at once: ours share commits, theirs wait for each other."""
    measured: list[Round] = []
    async with Store.open(folder / "ours-at-once.db") as ours, peer_store(folder / "theirs-at-once.db") as store:
        theirs = PeerLog(store)
        numbers = itertools.count(1)
        for _ in range(rounds):
            their_rate = await rate(lambda: theirs.append_stored(next(numbers)), appends)
            our_rate = await rate(lambda: ours.append_event(event(next(numbers))), appends)
            measured.append(([our_rate], [their_rate]))
    return ratio(
        *("4", f"append {rounds * appends:,} events by {CALLERS} callers, times faster", PEER, measured),
        show=per_second,
    )


async def loading(folder: Path, rounds: int) -> list[Figure]:
    """From a closed file with 100,000 events to the newest ten of them, and to all of them."""
    async with Store.open(folder / "ours.db") as ours:
        await fill(ours, LOADED)
    async with peer_store(folder / "theirs.db"):
        pass
    _fill_theirs(folder / "theirs.db")
    newest: list[Round] = []
    everything: list[Round] = []
    for _ in range(rounds):
        for wanted, measured in ((NEW_EVENTS, newest), (LOADED, everything)):
            theirs = await _load_theirs(folder / "theirs.db", wanted)
            measured.append(([theirs], [await _load_ours(folder / "ours.db", wanted)]))
    return [
        ratio(
            *("4", f"restart with {LOADED:,} events, to the newest {NEW_EVENTS}, times faster", PEER, newest),
            show=milliseconds,
            at_least=3,
            swapped=True,
        ),
        ratio(
            *("4", f"restart with {LOADED:,} events, to all of them in Python, times faster", PEER, everything),
            show=milliseconds,
            swapped=True,
        ),
    ]


def _fill_theirs(path: Path) -> None:
    """Put the rows in that 100,000 calls of `write` leave, with its last checkpoint, without waiting for them."""
    log = PeerLog(None)
    connection = sqlite3.connect(path)
    for number in range(1, LOADED + 1):
        row = ("events", log.append(number), b"", float(number))
        connection.execute("INSERT INTO yupdates VALUES (?, ?, ?, ?)", row)
    newest = (log.doc.get_update(), float(LOADED))
    connection.execute("INSERT INTO ycheckpoints VALUES ('events', ?, ?)", newest)
    connection.commit()
    connection.close()


async def _load_theirs(path: Path, wanted: int) -> float:
    started = time.perf_counter()
    async with peer_store(path) as store:
        log = PeerLog(store)
        await store.apply_updates(log.doc)
        texts = json.loads(str(log.events)) if wanted == LOADED else log.events[LOADED - wanted : LOADED]
        events = [decode_event("sled-1", text) for text in texts]
        seconds = time.perf_counter() - started
    assert len(events) == wanted
    return seconds


async def _load_ours(path: Path, wanted: int) -> float:
    started = time.perf_counter()
    async with Store.open(path) as store:
        events = await store.read_events(after=LOADED - wanted, limit=wanted)
        seconds = time.perf_counter() - started
    assert len(events) == wanted
    return seconds


async def measure(folder: Path, quick: bool) -> list[Figure]:
    """The row: each ratio is theirs / ours."""
    (folder / "loading").mkdir()
    return [
        *await measure_writing(folder, quick),
        await writing_at_once(folder, rounds=3 if quick else 5, appends=640 if quick else 1_920),
        *await loading(folder / "loading", rounds=3 if quick else 7),
    ]


async def measure_writing(folder: Path, quick: bool) -> list[Figure]:
    """The first line of the row alone."""
    return [await writing(folder, rounds=4 if quick else 20, appends=200 if quick else 500)]
