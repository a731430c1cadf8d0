"""Rooms whose stored bytes are damaged: each is told of once, in the log and in the room; the others go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

from bot import texts
from bot.health import Health
from bot.notices import notice
from crdt import Delivery, StoreDamaged

log = structlog.get_logger(__name__)

PART: Final = "sessions"
"""What health calls it."""


class Outbox(Protocol):
    """What telling a room needs of the store."""

    async def settle(self, keys: Sequence[str], outcome: str, deliveries: Sequence[Delivery] = ()) -> None: ...


class DamagedRooms:
    """Knows which rooms can't be answered, and reports the part "sessions", which it registers.

    `queued` is called once what they are told stands in the outbox.
    """

    def __init__(self, outbox: Outbox, health: Health, queued: Callable[[], None]) -> None:
        self._outbox = outbox
        self._health = health
        self._queued = queued
        self._rooms: set[str] = set()
        self._told: set[str] = set()
        health.register(PART)
        health.ok(PART)

    async def found(self, session_id: str, error: StoreDamaged) -> None:
        """A turn of the room met damage. What waits there keeps waiting: a restored backup may be able to answer it.

        Raises what keeps the store from telling the room; the next call tells it then.
        """
        if session_id not in self._rooms:
            self._rooms.add(session_id)
            log.error("room_damaged", session=session_id, reason=str(error))
            self._health.failing(PART, f"{len(self._rooms)} can't be read, see room_damaged in the log: {error}")
        if session_id in self._told:
            return
        self._told.add(session_id)
        try:
            await self._outbox.settle([], "damaged", [notice(session_id, texts.DAMAGED, "damaged")])
        except BaseException:  # whatever it is, the room has not been told
            self._told.discard(session_id)
            raise
        self._queued()

    def answered(self, session_id: str) -> None:
        """A turn of the room went well."""
        self._rooms.discard(session_id)
        self._told.discard(session_id)
        if not self._rooms:
            self._health.ok(PART)
