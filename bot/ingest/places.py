"""Bounds the requests whose bodies are being read or stored at one time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from bot.ingest.refusals import Overloaded

MAX_BODIES_IN_FLIGHT: Final = 64
"""For events, and for each source of webhooks: bounds what the senders of one make us hold to 64 MiB of raw bytes."""


class Places:
    """A fixed number of places. Who can come back later is turned away from a full house; who can't may wait."""

    def __init__(self, count: int = MAX_BODIES_IN_FLIGHT) -> None:
        self._free = asyncio.Semaphore(count)
        self._waits: set[asyncio.Timeout] = set()
        self._is_closing = False

    def close(self) -> None:
        """Turn away who waits, and who would have to wait from now on."""
        self._is_closing = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(0)

    @asynccontextmanager
    async def take(self, patience_s: float = 0.0) -> AsyncIterator[None]:
        """Hold a place, after waiting for one at most `patience_s`, first come first served.

        Raises:
            Overloaded: there was none.
        """
        if self._free.locked():
            if patience_s <= 0 or self._is_closing:
                raise Overloaded
            await self._wait(patience_s)
        else:
            await self._free.acquire()
        try:
            yield
        finally:
            self._free.release()

    async def _wait(self, patience_s: float) -> None:
        try:
            async with asyncio.timeout(patience_s) as wait:
                self._waits.add(wait)
                try:
                    await self._free.acquire()
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            raise Overloaded from None
