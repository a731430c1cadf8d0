"""Row 7: a room while events pour in: from a message to its begun turn."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

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


async def _converse(store: Store, seconds: float) -> list[float]:
    """Say something every 50 ms; seconds from the message to its begun turn, each."""
    took = []
    until = time.perf_counter() + seconds
    number = 0
    while time.perf_counter() < until:
        number += 1
        said = Message(f"$message-{number}", ROOM, "@alice:localhost", "what happened?", False, "{}")
        started = time.perf_counter()
        await store.admit([said], cursor=f"s{number}")
        waiting = await store.waiting(ROOM)
        turn = await store.begin_turn(ROOM, said.key, said.text, said=waiting)
        took.append(time.perf_counter() - started)
        await store.complete_turn(turn, "A short answer.")
        await asyncio.sleep(MESSAGE_EVERY_S)
    return took


async def measure(folder: Path, quick: bool) -> list[Figure]:
    """The row."""
    rounds: list[list[float]] = []
    rates = []
    for round_ in range(3 if quick else 5):
        over = asyncio.Event()
        counts = [0] * SENDERS
        async with Store.open(folder / f"{round_}.db") as store, asyncio.TaskGroup() as senders:
            for sender in range(SENDERS):
                senders.create_task(_pour(store, sender, over, counts))
            started = time.perf_counter()
            rounds.append(await _converse(store, seconds=3 if quick else 8))
            over.set()
            rates.append(time.perf_counter() - started)
        rates[-1] = sum(counts) / rates[-1]
    what = f"message to begun turn, {EVENTS_A_SECOND:,} events/s arriving"
    rate = round(sum(rates) / len(rates))
    return [
        quantity("7", f"{what}, p50", [quantile(each, 0.5) * 1e3 for each in rounds], "ms"),
        quantity("7", f"{what}, p99", [quantile(each, 0.99) * 1e3 for each in rounds], "ms", 50, events_a_second=rate),
    ]
