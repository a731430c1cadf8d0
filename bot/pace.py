"""One shared pause for the homeserver: whoever was told to wait, all wait."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final

import structlog

from bot.matrix import RateLimited

log = structlog.get_logger(__name__)

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 4.0
"""Back-off ends here: an answer has to come within 5 s of the end of a fault, and 4 s are gentle enough."""


class Pace:
    """Tells when the homeserver may be asked again. Every request to it passes through `ready` and reports back."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._next_pause_s = FIRST_PAUSE_S
        self._resume_at = 0.0

    async def ready(self) -> None:
        """Wait until no pause is on."""
        while (left := self._resume_at - self._clock()) > 0:  # noqa: ASYNC110 - a pause may grow while we sleep
            await asyncio.sleep(left)

    def worked(self) -> None:
        """Report an answer: the next failure starts from the shortest pause."""
        self._next_pause_s = FIRST_PAUSE_S

    def failed(self, error: Exception) -> None:
        """Report a failure that passes by itself: pause longer each time, with jitter, and as long as the server asks.

        A failure that is reported while a pause is on belongs to that pause; only the server's own wish prolongs it.
        """
        now = self._clock()
        pause_s = error.retry_after_s if isinstance(error, RateLimited) else 0.0
        if self._resume_at <= now:
            # Also where the server asks for less: one that says "at once" each time would be asked in a hot loop.
            pause_s = max(pause_s, self._next_pause_s * (0.75 + self._jitter() / 4))
            self._next_pause_s = min(self._next_pause_s * 2, LONGEST_PAUSE_S)
        if now + pause_s > self._resume_at:
            self._resume_at = now + pause_s
            log.info("homeserver_pause", seconds=round(pause_s, 2), reason=type(error).__name__)
