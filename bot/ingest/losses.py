"""Sees to it that what was lost is known: deliveries that nobody will send again become a gap in the log.

A loss is noted in memory, since it happens when the log takes nothing. As soon as the log accepts again, one sentinel
stands for all losses up to then, with the times of the first and the last, and every session is told of it once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from bot.ingest.storing import pause
from crdt import GAP_PIPELINE_EVENT, CrdtError, PipelineEvent

log = structlog.get_logger(__name__)

AppendGap = Callable[[PipelineEvent], Awaitable[int]]
"""Stores a gap sentinel durably."""

COALESCE_S: Final = 60.0
"""At most one sentinel in this time: a long overload is a few lines in a session, not hundreds."""
RETRY_S: Final = 2.0
_LAST_TRY_S: Final = 1.0
"""What a stop gives the last attempt, of the 10 s that the whole service has."""


@dataclass(slots=True)
class _Lost:
    first: datetime
    last: datetime
    count: int


def _now() -> datetime:
    return datetime.now(UTC)


class Losses:
    """Notes lost deliveries, and records them while its context is open."""

    def __init__(
        self,
        append_gap: AppendGap,
        *,
        clock: Callable[[], datetime] = _now,
        retry_s: float = RETRY_S,
        coalesce_s: float = COALESCE_S,
    ) -> None:
        self._append_gap = append_gap
        self._clock = clock
        self._retry_s = retry_s
        self._coalesce_s = coalesce_s
        self._lost: _Lost | None = None
        self._noted = asyncio.Event()
        self._stopping = asyncio.Event()
        self._recording: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Losses:
        self._recording = asyncio.create_task(self._run(), name="ingest-losses")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        self._noted.set()
        if self._recording is not None:
            # Cancelled in mid-write, a sentinel would be stored and yet written again.
            await asyncio.wait([self._recording], timeout=_LAST_TRY_S)
            self._recording.cancel()
        if self._lost is not None:
            lost = self._lost
            log.error("losses_unrecorded", count=lost.count, first=_stamp(lost.first), last=_stamp(lost.last))

    def note(self, source: str, reason: str, waited_s: float = 0.0) -> None:
        """Note that a delivery of `source`, which came `waited_s` ago, is lost."""
        log.error("delivery_lost", source=source, reason=reason)
        now = self._clock()
        came = now - timedelta(seconds=waited_s)
        if self._lost is None:
            self._lost = _Lost(came, now, 0)
        self._lost.first = min(self._lost.first, came)
        self._lost.last = max(self._lost.last, now)  # a clock may be set back
        self._lost.count += 1
        self._noted.set()

    async def _run(self) -> None:
        while True:
            await self._noted.wait()
            is_last = self._stopping.is_set()
            try:
                recorded = await self._record()
            except Exception:  # A fault of ours must not make later losses silent; this one is tried again.
                log.exception("losses_not_recorded_yet")
                recorded = False
            if is_last:
                return
            await pause(self._coalesce_s if recorded else self._retry_s, self._stopping)

    async def _record(self) -> bool:
        """Record what is lost so far; tell whether the log took it."""
        lost = self._lost
        if lost is None:
            return True
        told, until = lost.count, lost.last
        try:
            seq = await self._append_gap(_sentinel(lost))
        except CrdtError as error:
            log.warning("losses_not_recorded_yet", count=lost.count, reason=str(error))
            return False
        log.warning("losses_recorded", count=told, event_seq=seq)
        if lost.count == told:
            self._lost = None
            if not self._stopping.is_set():
                self._noted.clear()
        else:
            # More was lost while this was being written: that is for the next sentinel.
            self._lost = _Lost(until, lost.last, lost.count - told)
        return True


def _sentinel(lost: _Lost) -> PipelineEvent:
    # Whole seconds, so wide that the losses lie within.
    last = lost.last if not lost.last.microsecond else lost.last + timedelta(seconds=1)
    return PipelineEvent("", _stamp(lost.first), _stamp(last), GAP_PIPELINE_EVENT)


def _stamp(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
