"""How a room is encrypted, asked of the homeserver right before something is sent into it.

What syncs have told may be a moment old: somebody may have just encrypted the room, or the bot have just joined it. So
"unencrypted" is never taken from memory when something could be encrypted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from bot.matrix.e2ee import Encryption
from bot.matrix.errors import Forbidden, NotInRoom, Refused
from bot.matrix.rooms import Rooms
from bot.matrix.wire import Wire

FRESH_S: Final = 0.5
"""For how long what was asked ahead counts: a commit, and the way to the send."""


@dataclass(frozen=True, slots=True)
class _Ahead:
    asked_at: float
    answer: asyncio.Task[dict[str, Any] | None]


class RoomRules:
    """Knows the `m.room.encryption` of rooms; without `encryption` only from what syncs have told."""

    def __init__(
        self, wire: Wire, rooms: Rooms, encryption: Encryption | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._wire = wire
        self._rooms = rooms
        self._encryption = encryption
        self._clock = clock
        self._ahead: dict[str, _Ahead] = {}
        self._asking: set[asyncio.Task[dict[str, Any] | None]] = set()

    async def of(self, room_id: str) -> dict[str, Any] | None:
        """The content of `m.room.encryption` that counts for the room, or `None` only if it surely is not encrypted."""
        if self._encryption is None:
            known = self._rooms.get(room_id)
            if known is not None:
                return known.encryption if known.encrypted else None
            return await self._ask(room_id)
        rules = self._encryption.rules_of(room_id)
        if rules is None and (found := await self._rules(room_id)) is not None:
            rules = await self._encryption.remember_rules(room_id, found)
        return rules

    def ask_ahead(self, room_id: str) -> None:
        """Ask already, where it will have to be asked: something is sent into the room in a moment."""
        if self._encryption is not None and self._encryption.rules_of(room_id) is None:
            asking = asyncio.create_task(self._ask(room_id), name=f"rules of {room_id}")
            self._asking.add(asking)
            asking.add_done_callback(self._asked)
            self._ahead[room_id] = _Ahead(self._clock(), asking)

    def _asked(self, asking: asyncio.Task[dict[str, Any] | None]) -> None:
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()  # heard of here where nobody waits for it; what is sent later asks again

    async def _rules(self, room_id: str) -> dict[str, Any] | None:
        ahead = self._ahead.pop(room_id, None)
        if ahead is not None and self._clock() - ahead.asked_at < FRESH_S:
            return await asyncio.shield(ahead.answer)
        return await self._ask(room_id)

    async def _ask(self, room_id: str) -> dict[str, Any] | None:
        return await room_state(self._wire, room_id, "m.room.encryption")


async def room_state(wire: Wire, room_id: str, event_type: str) -> dict[str, Any] | None:
    """The content of a state event, or `None` if the room has none. Raises `NotInRoom`."""
    try:
        return await wire.get("rooms", room_id, "state", event_type, "", room=room_id)
    except Forbidden as error:
        raise NotInRoom(room_id) from error
    except Refused as error:
        if error.errcode == "M_NOT_FOUND":
            return None
        raise
