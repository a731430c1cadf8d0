"""Who is to be able to read an encrypted room, as the server lists them."""

from __future__ import annotations

from typing import Any

from bot.matrix.errors import Forbidden, NotInRoom
from bot.matrix.wire import Wire


class Members:
    """The members of rooms, asked for when needed, and kept until a sync brings a change, or may have hidden one."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._known: dict[str, set[str]] = {}
        self._changes: dict[str, int] = {}

    def changed(self, room_id: str) -> None:
        """The list of a room may be out of date."""
        self._known.pop(room_id, None)
        self._changes[room_id] = self._changes.get(room_id, 0) + 1

    async def of(self, room_id: str) -> set[str]:
        """Who is in the room, and who is invited: they may read from their invitation on. Raises `NotInRoom`."""
        known = self._known.get(room_id)
        if known is not None:
            return known
        before = self._changes.get(room_id, 0)
        try:
            answer = await self._wire.get("rooms", room_id, "members", query={"not_membership": "leave"}, room=room_id)
        except Forbidden as error:
            raise NotInRoom(room_id) from error
        members = {user for event in self._wire.list_in(answer, "chunk") if (user := _reader(event)) is not None}
        if self._changes.get(room_id, 0) == before:
            self._known[room_id] = members
        return members


def _reader(event: Any) -> str | None:
    content = event.get("content") if isinstance(event, dict) else None
    if not isinstance(content, dict) or content.get("membership") not in ("join", "invite"):
        return None
    user = event.get("state_key")
    return user if isinstance(user, str) else None
