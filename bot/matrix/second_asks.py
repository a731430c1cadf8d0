"""Asks the homeserver once more for what it has not answered in time: silence is the one fault that nobody tells of.

A server, or the network before it, may forget what it was asked and leave the connection open: neither an answer comes
nor an error. So an overdue request is made again beside the first, which stays: a server that is only slow answers that
one in the end, and is not made to begin anew for ever. The first second request to be answered shows that the server
speaks again; then everything that was asked before it is asked again at once. While it is silent, the second requests
of all together are one in `SHARE_S` seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

T = TypeVar("T")

SHARE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds until a request is made a second time, and until that one is given up for the next."""

    first_s: float
    again_s: float


USUAL: Final = Patience(4.5, 3.5)
"""So that the end of a fault is noticed within 5 s, whatever it swallowed."""
HEAVY: Final = Patience(10.0, 10.0)
"""For what may well be long work."""
AFTER_SILENCE: Final = Patience(3600.0, 3600.0)
"""For what is asked again only when the server has shown that it was silent."""


def _nothing() -> None:
    """Nobody minds the silence."""


class SecondAsks:
    """Makes requests that may safely be made twice. `on_silence` is called when one is overdue."""

    def __init__(self, on_silence: Callable[[], None] = _nothing, clock: Callable[[], float] = time.monotonic) -> None:
        self._on_silence = on_silence
        self._clock = clock
        self._next_at = 0.0
        """When the next second request may be made, whoever makes it."""
        self._spoke_at = 0.0
        """When the newest second request that got an answer was made."""
        self._speaks: asyncio.Future[None] | None = None

    async def answer(self, ask: Callable[[bool], Awaitable[T]], patience: Patience) -> T:
        """What `ask` returns or raises, the first time that it does; it is called with whether it was called before."""
        asks = [asyncio.ensure_future(ask(False))]
        asked_at, wait_s = self._clock(), patience.first_s
        try:
            while (answered := await self._any(asks, asked_at, wait_s)) is None:
                if len(asks) == 1:
                    self._on_silence()
                else:
                    await _given_up(asks.pop())
                asks.append(asyncio.ensure_future(ask(True)))
                asked_at, wait_s = self._clock(), patience.again_s
                self._next_at = asked_at + SHARE_S
            if answered is not asks[0] and answered.exception() is None:
                self._speak(asked_at)
            return answered.result()
        finally:
            await _given_up(*asks)

    async def _any(self, asks: Sequence[asyncio.Future[T]], asked_at: float, wait_s: float) -> asyncio.Future[T] | None:
        """The request that is answered; `None` when it is time to ask again."""
        while self._spoke_at <= asked_at:
            left_s = max(asked_at + wait_s, self._next_at) - self._clock()
            if left_s <= 0:
                return None
            if self._speaks is None:
                self._speaks = asyncio.get_running_loop().create_future()
            waited_for: list[asyncio.Future[Any]] = [*asks, self._speaks]
            await asyncio.wait(waited_for, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            for each in asks:
                if each.done():
                    return each
        return None

    def _speak(self, asked_at: float) -> None:
        self._spoke_at = max(self._spoke_at, asked_at)
        speaks, self._speaks = self._speaks, None
        if speaks is not None:
            speaks.set_result(None)


async def _given_up(*asks: asyncio.Future[Any]) -> None:
    for each in asks:
        each.cancel()
    await asyncio.gather(*asks, return_exceptions=True)
