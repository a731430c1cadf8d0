"""Looks every few seconds at what no part reports of itself: an outbox that does not drain, a disk that is full."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from bot.health import Health
from bot.unforeseen import contained
from crdt import Statistics, StoreDamaged, StoreUnavailable

LOOK_EVERY_S: Final = 5.0
OUTBOX_PATIENCE_S: Final = 300.0
"""A delivery that has waited for longer than this shows an outbox that does not drain."""
MIN_FREE_BYTES: Final = 1024 * 1024
"""Less room than this is none: a single turn with a long reply writes some 100 kB."""

_TRIED_AT: Final = "store_tried_at"


class Watched(Protocol):
    """What watching needs of the store."""

    async def statistics(self) -> Statistics: ...
    async def write_settings(self, values: Mapping[str, str]) -> None: ...


class Watch:
    """Reports the parts "outbox" and "store", which it registers."""

    def __init__(self, store: Watched, health: Health, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._health = health
        self._clock = clock
        self._began_at = clock()
        health.register("outbox")
        health.register("store")

    async def run(self) -> None:
        """Look for as long as the service lives."""
        while True:
            with contained("watch_broke"):
                await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Look once."""
        try:
            found = await self._store.statistics()
        except (StoreUnavailable, StoreDamaged) as error:
            self._health.failing("store", str(error))
            return
        self._look_at_outbox(found)
        await self._look_at_store(found)
        self._health.ready()  # a part that has fallen silent is told of even if nobody asks

    def _look_at_outbox(self, found: Statistics) -> None:
        # What was left from before the start has not had its chance yet.
        waited_s = min(found.outbox.oldest_s, self._clock() - self._began_at)
        if waited_s > OUTBOX_PATIENCE_S:
            self._health.failing(
                "outbox",
                f"the oldest of {found.outbox.waiting} deliveries has waited for more than {OUTBOX_PATIENCE_S:g} s: "
                "see room_unreachable and delivery_postponed in the log",
            )
        else:
            self._health.ok("outbox")

    async def _look_at_store(self, found: Statistics) -> None:
        problem = found.failure and await self._try_to_write()
        if problem is None and found.free_bytes < MIN_FREE_BYTES:
            problem = f"the disk has {found.free_bytes} bytes left: make room; Musher goes on by itself"
        if problem is None:
            self._health.ok("store")
        else:
            self._health.failing("store", problem)

    async def _try_to_write(self) -> str | None:
        """After a commit that failed, find out whether the next would too: there may be nobody else to try."""
        try:
            await self._store.write_settings({_TRIED_AT: f"{time.time():.0f}"})
        except (StoreUnavailable, StoreDamaged) as error:
            return str(error)
        return None
