"""Groups: what callers bring while one group is under way becomes the next group."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Gathering(Generic[T]):
    """Items that wait, and at most one group of them under way.

    `begin` takes from the list what the next group is to be, and starts it; whoever ends it calls `ended`. A group
    begins after everybody who is ready to run has run: callers that ask at one moment, or that were woken by the end of
    the last group, share one. Only callbacks stand between an item and its group, no task: that is most of the price
    of a small commit.
    """

    def __init__(self, begin: Callable[[list[T]], None]) -> None:
        self._begin = begin
        self._items: list[T] = []
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, item: T, *, gathered: bool = False) -> None:
        """Put an item into the next group. What was `gathered` before need not wait for others."""
        self._items.append(item)
        if self._idle.is_set():
            self._idle.clear()
            if gathered:
                self._next()
            else:
                self.ended()

    def ended(self) -> None:
        """Note that the group under way has come to its end."""
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if self._items:
            self._begin(self._items)
        else:
            self._idle.set()

    async def until_idle(self) -> None:
        """Wait until nothing waits and nothing is under way."""
        await self._idle.wait()
