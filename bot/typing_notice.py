"""Shows in the room that the model is at work, once that has lasted long enough to be worth saying."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog

from bot.matrix import LoggedOut, RateLimited, Unreachable
from bot.pace import Pace

log = structlog.get_logger(__name__)

SHOW_AFTER_S: Final = 0.3
SHOWN_FOR_MS: Final = 30_000
REFRESH_AFTER_S: Final = 25.0
SWITCH_TIMEOUT_S: Final = 1.0
"""The answer waits for the notice to be switched off, so a homeserver that hangs must not hold it up."""

PAUSE_S: Final = 30.0
"""After a notice that failed, no room gets one for this long."""

Typing = Callable[[str, bool, int], Awaitable[None]]
"""Switch the room's typing notice on or off, for that many milliseconds."""


@asynccontextmanager
async def typing_notice(switch: Typing, room_id: str) -> AsyncIterator[None]:
    """Show that the bot is typing while the block runs, from 300 ms on. A notice that can't be sent is not missed."""
    showing = asyncio.create_task(_show(switch, room_id), name=f"typing {room_id}")
    try:
        yield
    finally:
        showing.cancel()
        # Not awaited itself: its cancellation could not be told from that of the caller, which has to go on.
        await asyncio.wait({showing})


def only_while_open(switch: Typing, pace: Pace) -> Typing:
    """Leave notices out while the homeserver is to be spared, and for a while after one that failed."""
    resume_at = 0.0

    async def switch_if_open(room_id: str, on: bool, timeout_ms: int) -> None:
        nonlocal resume_at
        if not pace.open or pace.clock() < resume_at:
            return
        try:
            await switch(room_id, on, timeout_ms)
        except Unreachable as error:
            resume_at = pace.clock() + PAUSE_S
            pace.doubted(error)
            raise
        except (RateLimited, LoggedOut) as error:
            pace.failed(error)
            raise

    return switch_if_open


async def _show(switch: Typing, room_id: str) -> None:
    await asyncio.sleep(SHOW_AFTER_S)
    try:
        while True:
            await _switch(switch, room_id, on=True)
            await asyncio.sleep(REFRESH_AFTER_S)
    finally:
        await asyncio.shield(_switch(switch, room_id, on=False))


async def _switch(switch: Typing, room_id: str, *, on: bool) -> None:
    try:
        async with asyncio.timeout(SWITCH_TIMEOUT_S):
            await switch(room_id, on, SHOWN_FOR_MS)
    except Exception as error:  # whatever becomes of the notice, the answer matters more
        log.debug("typing_notice_failed", session=room_id, reason=type(error).__name__)
