"""How long to try again for a model that fails in a way that may pass."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from bot.llm.port import ModelFailed, Reply

log = structlog.get_logger(__name__)

ATTEMPTS: Final = 3
FIRST_DELAY_SECONDS: Final = 1.0
LONGEST_DELAY_SECONDS: Final = 60.0
"""The longest wait that a server may ask for by Retry-After; asked for more, the call fails at once and says so."""


@dataclass(frozen=True, slots=True)
class Patience:
    """The bounds of retrying, and the sources of time and chance (uniform in [0, 1)); all times in seconds.

    `total_seconds` bounds when the last attempt may begin, counted from the first.
    """

    total_seconds: float
    attempts: int = ATTEMPTS
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random
    clock: Callable[[], float] = time.monotonic

    def delay(self, attempt: int, retry_after: float | None) -> float:
        """How long to wait after the given attempt (1 is the first): exponential with jitter, or what was asked for.

        The jitter comes on top of Retry-After: rooms that were refused together must not return together.
        """
        backoff = FIRST_DELAY_SECONDS * 2.0 ** (attempt - 1) * (0.5 + self.chance() / 2)
        return backoff if retry_after is None else max(0.0, retry_after) + backoff


async def persist(attempt: Callable[[], Awaitable[Reply]], patience: Patience) -> Reply:
    """Call until a reply comes, a failure is final, or patience ends.

    Raises:
        ModelFailed: the last attempt's.
    """
    began = patience.clock()
    for number in range(1, patience.attempts):
        try:
            return await attempt()
        except ModelFailed as failure:
            delay = patience.delay(number, failure.retry_after)
            asked_too_much = (failure.retry_after or 0.0) > LONGEST_DELAY_SECONDS
            too_late = patience.clock() - began + delay > patience.total_seconds
            if not failure.transient or asked_too_much or too_late:
                raise
            log.warning("model_retry", kind=failure.kind, attempt=number, delay_seconds=round(delay, 1))
            await patience.sleep(delay)
    return await attempt()
