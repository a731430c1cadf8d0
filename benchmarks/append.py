"""Row 1: a durable append, beside the commit that it can't do without."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.commits import GroupCommit, RawCommits
from benchmarks.figure import Figure, Round, microseconds, per_second, ratio
from benchmarks.stores import event
from crdt import Store

CALLERS = 64


async def one_caller(folder: Path, rounds: int, samples: int) -> Figure:
    """append_event by one caller, and a raw commit, in turns."""
    measured: list[Round] = []
    with RawCommits.into(folder / "raw.db") as raw:
        for _ in range(rounds):
            ours: list[float] = []
            theirs: list[float] = []
            # Opened anew each round: which core a store's thread was put on is luck that lasts as long as the thread.
            async with Store.open(folder / "ours.db") as store:
                for number in range(samples):
                    theirs.append(raw.one())
                    started = time.perf_counter()
                    await store.append_event(event(number))
                    ours.append(time.perf_counter() - started)
            measured.append((ours, theirs))
    return ratio(
        *("1", "durable append, one caller", "raw SQLite commit of one row", measured),
        show=microseconds,
        at_most=1.6,
    )


async def many_callers(folder: Path, rounds: int, appends: int) -> Figure:
    """Appends a second by 64 callers, and rows a second of a bare group commit by as many."""
    measured: list[Round] = []
    bare = GroupCommit(folder / "bare-group.db")
    async with Store.open(folder / "ours-group.db") as store:
        for _ in range(rounds):
            theirs = await _rate(bare.one, appends)
            ours = await _rate(lambda: store.append_event(event(1)), appends)
            measured.append(([ours], [theirs]))
    bare.close()
    return ratio(
        *("1", f"durable append, {CALLERS} callers", "bare group commit", measured),
        show=per_second,
        at_least=0.5,
    )


async def _rate(work: Callable[[], Awaitable[object]], times: int) -> float:
    async def caller() -> None:
        for _ in range(times // CALLERS):
            await work()

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return times // CALLERS * CALLERS / (time.perf_counter() - started)


async def measure(folder: Path, quick: bool) -> list[Figure]:
    """The row."""
    return [
        await one_caller(folder, rounds=5 if quick else 15, samples=100 if quick else 200),
        await many_callers(folder, rounds=5 if quick else 9, appends=6_400 if quick else 19_200),
    ]
