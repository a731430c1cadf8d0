"""Lanes: one for each room, so that a room's messages are worked in order while other rooms go on.

A lane exists only while its room has work. What the work is, the composition root decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger(__name__)


class Lanes:
    """Runs `work(session_id)` for rooms that were woken: never twice at once for one room, `parallel` rooms at most.

    `work` does one piece of work and tells whether there may be more; rooms that wait get their turn in between. An
    exception that comes out of it ends that room's work until the room is woken again; other rooms don't notice.
    """

    def __init__(self, work: Callable[[str], Awaitable[bool]], parallel: int) -> None:
        self._work = work
        self._slots = asyncio.Semaphore(parallel)
        self._lanes: dict[str, asyncio.Task[None]] = {}
        self._woken_again: set[str] = set()
        self._closing = False

    def wake(self, session_id: str) -> None:
        """There may be something to do for this room."""
        if self._closing:
            return
        if session_id in self._lanes:
            self._woken_again.add(session_id)
            return
        lane = asyncio.create_task(self._run(session_id), name=f"lane {session_id}")
        self._lanes[session_id] = lane
        lane.add_done_callback(lambda lane: self._ended(session_id, lane))

    async def _run(self, session_id: str) -> None:
        more = True
        while (more or session_id in self._woken_again) and not self._closing:
            async with self._slots:
                if self._closing:
                    return
                self._woken_again.discard(session_id)
                more = await self._work(session_id)

    def _ended(self, session_id: str, lane: asyncio.Task[None]) -> None:
        """Forget the lane. A callback of its task: one that is cancelled before it began runs no line of its own."""
        del self._lanes[session_id]
        error = None if lane.cancelled() else lane.exception()
        if error is not None:
            log.error("room_work_failed", session=session_id, exc_info=error)
        if session_id in self._woken_again:
            self._woken_again.discard(session_id)
            self.wake(session_id)

    async def drain(self) -> None:
        """Wait until no room has work."""
        while self._lanes:
            await asyncio.wait(set(self._lanes.values()))

    async def close(self, grace_s: float) -> None:
        """Begin no more work; let what runs finish for `grace_s` seconds, then park it: it waits in the inbox."""
        self._closing = True
        lanes = set(self._lanes.values())
        if not lanes:
            return
        _, late = await asyncio.wait(lanes, timeout=grace_s)
        for lane in late:
            lane.cancel()
        if late:
            log.info("turns_parked", count=len(late))
            await asyncio.wait(late)
