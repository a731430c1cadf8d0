"""Bounds the requests whose bodies are being read or stored at one time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from bot.ingest.refusals import Overloaded

MAX_BODIES_IN_FLIGHT: Final = 64
"""For events and for webhooks each: bounds what senders make us hold to 64 MiB of raw bytes."""


class Places:
    """A fixed number of places. Who can come back later is turned away from a full house; who can't may wait."""

    def __init__(self, count: int = MAX_BODIES_IN_FLIGHT) -> None:
        self._free = asyncio.Semaphore(count)

    @asynccontextmanager
    async def take(self, patience_s: float = 0.0) -> AsyncIterator[None]:
        """Hold a place, after waiting for one at most `patience_s`, first come first served.

        Raises:
            Overloaded: there was none.
        """
        if self._free.locked() and patience_s <= 0:
            raise Overloaded
        try:
            async with asyncio.timeout(patience_s or None):
                await self._free.acquire()
        except TimeoutError:
            raise Overloaded from None
        try:
            yield
        finally:
            self._free.release()
