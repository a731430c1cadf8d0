"""Hands events to the log, and says in HTTP's terms why it did not take them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from bot.ingest.refusals import StorageFull, StorageUnavailable, Unavailable, Unprocessable
from crdt import Appended, EventBatch, InvalidEvent, StoreClosed, StoreFull, StoreUnavailable

Append = Callable[[Sequence[EventBatch]], Awaitable[Sequence[Appended]]]
"""Stores all batches in one commit, or none; returns after the commit."""

RETRY_S: Final = 0.25
"""Between two attempts to store for a sender that won't come back."""


async def store(append: Append, batches: Sequence[EventBatch]) -> Sequence[Appended]:
    """Store batches in one commit.

    Raises:
        Unprocessable: the log refuses an event.
        Unavailable: the log can't be written now.
    """
    if not batches:
        return ()
    try:
        return await append(batches)
    except InvalidEvent as error:
        raise Unprocessable(f"{error.field} {error.problem}; nothing was stored", field=error.field) from error
    except StoreFull as error:
        raise StorageFull from error
    except (StoreUnavailable, StoreClosed) as error:
        raise StorageUnavailable from error


async def store_until(
    append: Append, batches: Sequence[EventBatch], deadline: float, stopping: asyncio.Event
) -> Sequence[Appended]:
    """Store batches in one commit, trying again until `deadline` (the loop's time), or until `stopping` is set.

    Raises:
        Unprocessable, Unavailable: see `store`.
    """
    clock = asyncio.get_running_loop().time
    while True:
        try:
            return await store(append, batches)
        except Unavailable:
            if stopping.is_set() or clock() + RETRY_S > deadline:
                raise
        await pause(RETRY_S, stopping)


async def pause(seconds: float, stopping: asyncio.Event) -> None:
    """Wait, but no longer than until `stopping` is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stopping.wait()


def outcome(batches: Sequence[EventBatch], appended: Sequence[Appended], ignored: int = 0) -> dict[str, object]:
    """Say what became of the events of a request: the JSON of the 202."""
    seqs = [seq for stored in appended for seq in stored.seqs]
    duplicates = sum(len(batch.events) for batch, stored in zip(batches, appended, strict=True) if stored.duplicate)
    return {
        "accepted": len(seqs),
        "duplicates": duplicates,
        "ignored": ignored,
        "first_seq": min(seqs, default=None),
        "last_seq": max(seqs, default=None),
    }
