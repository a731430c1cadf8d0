"""What the bot does in rooms: send, type, join, leave, and look for what it has already sent.

Each function is one attempt. Repetition is the outbox's work, with the same transaction id, which the homeserver
answers with the event id of the first time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from bot.matrix.e2ee import Encryption
from bot.matrix.errors import EncryptedRoom, Forbidden, NotInRoom, Refused, RoomReplaced, Unreachable
from bot.matrix.model import DELIVERY_ID_FIELD
from bot.matrix.room_rules import RoomRules, room_state
from bot.matrix.rooms import Rooms
from bot.matrix.wire import Wire

PAGE_EVENTS: Final = 100
MOST_PAGES: Final = 20
"""How far `find_own` looks back, in pages of the bot's own events."""

_ABSENT: Final = frozenset({"M_NOT_FOUND", "M_UNKNOWN"})


async def send(
    wire: Wire,
    room_rules: RoomRules,
    encryption: Encryption | None,
    room_id: str,
    *,
    event_type: str,
    content: Mapping[str, Any],
    txn_id: str,
) -> str:
    """Send one event, encrypted where the room is, and return its id.

    Raises `EncryptedRoom` rather than put readable text into an encrypted room, where there is no `encryption`, and
    `RoomReplaced` where the bot may not write any more since the room has a replacement.
    """
    rules = await room_rules.of(room_id)
    if rules is not None:
        if encryption is None:
            raise EncryptedRoom(room_id)
        content = await encryption.write(room_id, rules, event_type, dict(content))
        event_type = "m.room.encrypted"
    try:
        answer = await wire.put("rooms", room_id, "send", event_type, txn_id, body=content, room=room_id)
    except Forbidden as error:
        raise await _why_forbidden(wire, error) from error
    except Refused as error:
        raise (NotInRoom(room_id) if error.errcode == "M_NOT_FOUND" else error) from error
    event_id = answer.get("event_id")
    if not isinstance(event_id, str):
        raise Unreachable(wire.homeserver, "it took an event without giving its id")
    return event_id


async def typing(wire: Wire, room_id: str, on: bool, timeout_ms: int) -> None:
    """Show or hide the bot's typing notice; it vanishes by itself after `timeout_ms`."""
    body: dict[str, Any] = {"typing": True, "timeout": timeout_ms} if on else {"typing": False}
    try:
        await wire.put("rooms", room_id, "typing", wire.user_id, body=body, room=room_id)
    except Forbidden as error:
        raise await _why_forbidden(wire, error) from error


async def join(wire: Wire, room_id: str) -> None:
    """Accept an invitation. Joining a room that the bot is in does nothing. Raises `Forbidden` when it is withdrawn."""
    await wire.post("rooms", room_id, "join", body={}, room=room_id)


async def leave(wire: Wire, room_id: str) -> None:
    """Leave the room, or decline the invitation. Raises `NotInRoom` where there was neither."""
    # What is known of the room is dropped by the sync that tells of it: one still under way may bring news of the room,
    # and a room known by its news alone would pass for unencrypted.
    try:
        await wire.post("rooms", room_id, "leave", body={}, room=room_id)
    except Forbidden as error:
        raise NotInRoom(room_id) from error
    except Refused as error:
        raise (NotInRoom(room_id) if error.errcode in _ABSENT else error) from error


async def forget_room(wire: Wire, room_id: str) -> None:
    """Have the homeserver forget a room that the bot has left."""
    await wire.post("rooms", room_id, "forget", body={}, room=room_id)


async def find_own(wire: Wire, room_id: str, delivery_id: str) -> str | None:
    """The id of the bot's own event that carries this delivery's id, among its newest 2,000 in the room, or `None`."""
    query = {
        "dir": "b",
        "limit": str(PAGE_EVENTS),
        "filter": json.dumps({"senders": [wire.user_id], "lazy_load_members": True}),
    }
    for _ in range(MOST_PAGES):
        answer = await _page(wire, room_id, query)
        for event in wire.list_in(answer, "chunk"):
            if _carries(event, wire.user_id, delivery_id):
                return str(event["event_id"])
        end = answer.get("end")
        if not isinstance(end, str) or end == query.get("from"):
            return None
        query["from"] = end
    return None


async def is_public(wire: Wire, rooms: Rooms, room_id: str) -> bool:
    """Whether strangers may join the room or read it."""
    known = rooms.get(room_id)
    if known is not None:
        return known.public
    join_rules = await room_state(wire, room_id, "m.room.join_rules")
    visibility = await room_state(wire, room_id, "m.room.history_visibility")
    return (join_rules or {}).get("join_rule") == "public" or (
        (visibility or {}).get("history_visibility") == "world_readable"
    )


async def _page(wire: Wire, room_id: str, query: Mapping[str, str]) -> dict[str, Any]:
    try:
        return await wire.get("rooms", room_id, "messages", query=query, room=room_id)
    except Forbidden as error:
        raise NotInRoom(room_id) from error


async def _why_forbidden(wire: Wire, error: Forbidden) -> Forbidden | NotInRoom | RoomReplaced:
    """A homeserver says M_FORBIDDEN to a stranger, to a member without the power level, and in a closed room alike."""
    if error.room_id not in wire.list_in(await wire.get("joined_rooms"), "joined_rooms"):
        return NotInRoom(error.room_id)
    tombstone = await room_state(wire, error.room_id, "m.room.tombstone")
    return RoomReplaced(error.room_id) if (tombstone or {}).get("replacement_room") else error


def _carries(event: object, sender: str, delivery_id: str) -> bool:
    if not isinstance(event, dict) or not isinstance(event.get("event_id"), str):
        return False
    if event.get("sender") != sender:  # conduwuit, among others, does not know the filter's senders
        return False
    content = event.get("content")
    return isinstance(content, dict) and content.get(DELIVERY_ID_FIELD) == delivery_id
