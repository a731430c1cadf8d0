"""A process that uses a store without pause and says what was acknowledged, until it is killed.

`python -m tests.crdt.crashing_writer DATABASE ROUND`; each line is one acknowledgement: a word and what it is about.
"""

from __future__ import annotations

import asyncio
import logging
import sys

import structlog

from crdt import EventBatch, Store
from tests.crdt.samples import delivery, event, message

ROOMS = ("!a", "!b")
SEGMENT_EVENTS = 40


def acknowledge(*words: object) -> None:
    """Say that something is on the disk."""
    print(*words, flush=True)  # noqa: T201


async def append(store: Store, task: str) -> None:
    """Append one batch after the other, each with a dedupe key, and every third batch twice."""
    number = 0
    while True:
        number += 1
        stories = [f"{task}-{number}-{part}" for part in range(number % 3 + 1)]
        batch = EventBatch(tuple(event(story_id=story) for story in stories), (f"{task}-{number}",))
        copies = [store.append_batches([batch]) for _ in range(2 if number % 3 == 0 else 1)]
        for (outcome,) in await asyncio.gather(*copies):
            if not outcome.duplicate:
                acknowledge("appended", *(f"{seq}={story}" for seq, story in zip(outcome.seqs, stories, strict=True)))


async def talk(store: Store, room: str, task: str) -> None:
    """First end the turns that a death left open, then begin and complete new ones."""
    for waiting in await store.waiting(room):
        await turn(store, room, waiting.key)
    number = 0
    while True:
        number += 1
        key = f"${room}-{task}-{number}"
        await store.admit([message(key, f"text {key}", room)], f"s-{key}")
        acknowledge("admitted", room, key)
        await turn(store, room, key)


async def turn(store: Store, room: str, key: str) -> None:
    begun = await store.begin_turn(room, key, f"text {key}", max_lines=5)
    acknowledge("begun", room, key, begun.attempt)
    await store.complete_turn(begun, f"answer {key}", [delivery(f"d-{key}", room)])
    acknowledge("completed", room, key)


async def main(path: str, task: str) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    async with (
        Store.open(path, sled_id="build-1", segment_events=SEGMENT_EVENTS) as store,
        asyncio.TaskGroup() as tasks,
    ):
        for number in range(3):
            tasks.create_task(append(store, f"{task}.{number}"))
        for room in ROOMS:
            tasks.create_task(talk(store, room, task))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
