"""Row 2: begin_turn with 10 new events, beside a raw commit, beside itself in other logs, beside itself in old age."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.commits import RawCommits
from benchmarks.figure import Figure, Round, microseconds, milliseconds, ratio
from benchmarks.stores import event, fill, settle_in
from crdt import Store

NEW_EVENTS = 10
SIZES = (1_000, 30_000, 300_000, 1_000_000)
YOUNG_TURNS = 100
OLD_TURNS = 10_000
ROOM = "!room"

_numbers = itertools.count(1)


async def one_turn(store: Store, room: str = ROOM) -> float:
    """Begin and complete a turn with new events; returns the seconds of begin_turn alone."""
    await store.append_events([event(next(_numbers)) for _ in range(NEW_EVENTS)])
    key = f"$turn-{next(_numbers)}"
    started = time.perf_counter()
    turn = await store.begin_turn(room, key, "what happened?")
    seconds = time.perf_counter() - started
    assert len(turn.lines) == NEW_EVENTS
    await store.complete_turn(turn, "A short answer.")
    return seconds


async def prepared(path: Path, events: int) -> Path:
    """Make a log of some size that one room has been told."""
    async with Store.open(path) as store:
        await fill(store, events)
        turn = await store.begin_turn(ROOM, "$first", "what happened before?")
        await store.complete_turn(turn, "Much.")
    return path


async def sizes(folder: Path, rounds: int, samples: int, events: Sequence[int]) -> list[Figure]:
    """begin_turn in logs of all sizes, each in turns with a raw commit.

    Only one store is open at a time, as in a service: threads of several that are woken in turns drive each other from
    core to core. Each is opened anew each round: which core its thread is put on is luck that lasts.
    """
    paths = [await prepared(folder / f"log-{count}.db", count) for count in events]
    measured: list[list[Round]] = [[] for _ in events]
    with RawCommits.into(folder / "raw.db") as raw:
        for number in range(rounds):
            order = list(zip(paths, measured, strict=True))
            for path, of_size in order if number % 2 else reversed(order):
                async with Store.open(path) as store:
                    await settle_in(store, ROOM)
                    of_size.append(await raw.beside(lambda: one_turn(store), samples))
    return _compare(events, measured)


def _compare(events: Sequence[int], measured: Sequence[Sequence[Round]]) -> list[Figure]:
    figures = [
        ratio(
            *("2", f"begin_turn, 10 new events, log of {count:,}", "raw SQLite commit of one row", rounds),
            show=microseconds,
            at_most=2.5,
        )
        for count, rounds in zip(events, measured, strict=True)
    ]
    biggest_to_smallest = [(big[0], small[0]) for big, small in zip(measured[-1], measured[0], strict=True)]
    flat = ratio(
        *("2", f"begin_turn, log of {events[-1]:,}", f"log of {events[0]:,}", biggest_to_smallest),
        show=microseconds,
        at_most=1.15,
    )
    return [*figures, flat]


async def ages(folder: Path, rounds: int, old_turns: int) -> Figure:
    """Whole turns 51 to 150 of a session, and as many after turn 10,000 of another, in turns: both meet one roll."""
    path = folder / "ages.db"
    async with Store.open(path) as store:
        await _whole_turns(store, "!old", old_turns)
    measured: list[Round] = []
    for round_ in range(rounds):
        young = f"!young-{round_}"
        late: list[float] = []
        early: list[float] = []
        async with Store.open(path) as store:
            await _whole_turns(store, young, YOUNG_TURNS - 50)
            for number in range(100):
                sides = [(young, early), ("!old", late)]
                for room, seconds in sides if number % 2 else reversed(sides):
                    started = time.perf_counter()
                    await _whole_turns(store, room, 1)
                    seconds.append(time.perf_counter() - started)
        measured.append((late, early))
    return ratio(
        *("2", f"whole turn, {old_turns:,}th of a session", f"{YOUNG_TURNS}th of a session", measured),
        show=milliseconds,
        at_most=1.3,
    )


async def _whole_turns(store: Store, room: str, count: int) -> None:
    for _ in range(count):
        turn = await store.begin_turn(room, f"$turn-{next(_numbers)}", "what happened?")
        await store.complete_turn(turn, "Nothing since you asked.")


async def measure(folder: Path, quick: bool) -> list[Figure]:
    """The row."""
    events = SIZES[:-2] if quick else SIZES
    flat = await _measure_sizes(folder, quick, events)
    return [*flat, await ages(folder, rounds=3 if quick else 9, old_turns=2_000 if quick else OLD_TURNS)]


async def measure_in_one_log(folder: Path, quick: bool) -> list[Figure]:
    """The first line of the row alone, in a log of 30,000."""
    return (await _measure_sizes(folder, quick, (30_000,)))[:1]


async def _measure_sizes(folder: Path, quick: bool, events: Sequence[int]) -> list[Figure]:
    return await sizes(folder, rounds=4 if quick else 15, samples=50 if quick else 100, events=events)
