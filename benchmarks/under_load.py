"""Row 7: a room while events pour in: from a message to its begun turn, beside two raw commits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.commits import RawCommits
from benchmarks.figure import Figure, quantile, quantity
from benchmarks.stores import event
from crdt import EventBatch, Message, Store

EVENTS_A_SECOND = 2_000
SENDERS = 20
ROOM = "!room"
MESSAGE_EVERY_S = 0.05


async def _pour(store: Store, sender: int, over: asyncio.Event, counts: list[int]) -> None:
    """Send events one by one at this sender's share of the rate, each with a dedupe key, as the listener does."""
    started = time.perf_counter()
    sent = 0
    while not over.is_set():
        key = f"{sender}-{sent}"
        await store.append_batches([EventBatch((event(sent),), (key,))])
        sent += 1
        ahead = started + sent * SENDERS / EVENTS_A_SECOND - time.perf_counter()
        if ahead > 0:
            await asyncio.sleep(ahead)
    counts[sender] = sent


async def _converse(store: Store, raw: RawCommits, seconds: float) -> tuple[list[float], list[float]]:
    """Say something every 50 ms; seconds from the message to its begun turn, each.

    At the same moments, what a message can't do without: two raw commits one after the other, in a thread of their own.
    """
    turns, commits = [], []
    until = time.perf_counter() + seconds
    number = 0
    with ThreadPoolExecutor(1) as thread:
        while time.perf_counter() < until:
            number += 1
            said = Message(f"$message-{number}", ROOM, "@alice:localhost", "what happened?", False, "{}")
            bare = asyncio.get_running_loop().run_in_executor(thread, lambda: raw.one() + raw.one())
            started = time.perf_counter()
            await store.admit([said], cursor=f"s{number}")
            waiting = await store.waiting(ROOM)
            turn = await store.begin_turn(ROOM, said.key, said.text, said=waiting)
            turns.append(time.perf_counter() - started)
            await store.complete_turn(turn, "A short answer.")
            commits.append(await bare)
            await asyncio.sleep(MESSAGE_EVERY_S)
    return turns, commits


async def measure(folder: Path, quick: bool) -> list[Figure]:
    """The row."""
    turns: list[list[float]] = []
    commits: list[list[float]] = []
    rates = []
    with RawCommits.into(folder / "raw.db") as raw:
        for round_ in range(3 if quick else 5):
            over = asyncio.Event()
            counts = [0] * SENDERS
            async with Store.open(folder / f"{round_}.db") as store, asyncio.TaskGroup() as senders:
                for sender in range(SENDERS):
                    senders.create_task(_pour(store, sender, over, counts))
                started = time.perf_counter()
                turned, committed = await _converse(store, raw, seconds=3 if quick else 8)
                over.set()
                rates.append(sum(counts) / (time.perf_counter() - started))
            turns.append(turned)
            commits.append(committed)
    rate = round(sum(rates) / len(rates))
    begun = f"message to begun turn, {EVENTS_A_SECOND:,} events/s arriving"
    bare = "two raw commits at the same moments"
    return [
        quantity("7", f"{begun}, p50", _quantiles(turns, 0.5), "ms"),
        quantity("7", f"{bare}, p50", _quantiles(commits, 0.5), "ms"),
        quantity("7", f"{begun}, p99", _quantiles(turns, 0.99), "ms", 50, events_a_second=rate),
        quantity("7", f"{bare}, p99", _quantiles(commits, 0.99), "ms"),
    ]


def _quantiles(rounds: Sequence[Sequence[float]], share: float) -> list[float]:
    """The quantile of each round, in milliseconds."""
    return [quantile(each, share) * 1e3 for each in rounds]
