"""Tells in the log of a trouble that comes again and again: when it begins, now and then while it lasts, at its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Literal

import structlog

log = structlog.get_logger(__name__)

REMIND_EVERY_S: Final = 600.0
"""While a trouble lasts, one line in this time."""
QUIET_S: Final = 60.0
"""A trouble that comes back sooner than this after it was told of is not told of anew."""


class Trouble:
    """One kind of trouble, logged as `event`, and its end as `<event>_over`; each repetition at level debug only."""

    def __init__(
        self,
        event: str,
        *,
        level: Literal["info", "warning", "error"] = "warning",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._event = event
        self._level = level
        self._clock = clock
        self._told_at: float | None = None
        self._is_told = False
        self._times = 0

    def met(self, reason: str, **facts: object) -> None:
        """It has happened, again perhaps."""
        now = self._clock()
        self._times += 1
        silent_s = REMIND_EVERY_S if self._is_told else QUIET_S
        if self._told_at is not None and now - self._told_at < silent_s:
            log.debug(self._event, reason=reason, **facts)
            return
        if self._times > 1:
            facts["times"] = self._times
        getattr(log, self._level)(self._event, reason=reason, **facts)
        self._told_at, self._is_told, self._times = now, True, 0

    def over(self) -> None:
        """It has not happened where it could have."""
        if self._is_told:
            log.info(f"{self._event}_over", repeated=self._times)
            self._is_told, self._times = False, 0
