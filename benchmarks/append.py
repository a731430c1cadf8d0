"""Row 1: a durable append, beside the commit that it can't do without."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.commits import GroupCommit, RawCommits
from benchmarks.figure import Figure, Round, microseconds, per_second, ratio, timed
from benchmarks.stores import event, settle_in
from crdt import Store

CALLERS = 64


async def one_caller(folder: Path, rounds: int, samples: int) -> list[Figure]:
    """append_event by one caller, and a raw commit that the loop awaits of a thread, each in turns with a raw commit.

    The two do not run beside each other: threads that are woken in turns drive each other from core to core.
    """
    appends: list[Round] = []
    crossings: list[Round] = []
    loop = asyncio.get_running_loop()
    with RawCommits.into(folder / "raw.db") as raw, RawCommits.into(folder / "threaded.db") as threaded:
        for _ in range(rounds):
            # Opened anew each round: which core a store's thread is put on is luck that lasts as long as the thread.
            async with Store.open(folder / "ours.db") as store:
                await settle_in(store)
                appends.append(await raw.beside(lambda: timed(store.append_event(event(1))), samples))
            with ThreadPoolExecutor(1) as thread:
                crossings.append(await raw.beside(lambda: timed(loop.run_in_executor(thread, threaded.one)), samples))
    beside = "raw SQLite commit of one row"
    return [
        ratio("1", "durable append, one caller", beside, appends, show=microseconds, at_most=1.6),
        ratio("1", "that raw commit in a thread, awaited", beside, crossings, show=microseconds),
    ]


async def many_callers(folder: Path, rounds: int, appends: int) -> Figure:
    """Appends a second by 64 callers, and rows a second of a bare group commit by as many."""
    measured: list[Round] = []
    made = event(1)
    bare = GroupCommit(folder / "bare-group.db")
    async with Store.open(folder / "ours-group.db") as store:
        for _ in range(rounds):
            theirs = await rate(bare.one, appends)
            ours = await rate(lambda: store.append_event(made), appends)
            measured.append(([ours], [theirs]))
    bare.close()
    return ratio(
        *("1", f"durable append, {CALLERS} callers", "bare group commit", measured),
        show=per_second,
        at_least=0.5,
    )


async def rate(work: Callable[[], Awaitable[object]], times: int) -> float:
    """How often a second `work` is done by as many callers, each of whom does it again and again."""

    async def caller() -> None:
        for _ in range(times // CALLERS):
            await work()

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return times // CALLERS * CALLERS / (time.perf_counter() - started)


async def measure(folder: Path, quick: bool) -> list[Figure]:
    """The row."""
    return [
        *await one_caller(folder, rounds=5 if quick else 15, samples=100 if quick else 200),
        await many_callers(folder, rounds=5 if quick else 21, appends=6_400 if quick else 12_800),
    ]
