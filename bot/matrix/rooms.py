"""What the bot knows of the rooms that it is in, from the state events that syncs bring.

nio's own memory of rooms would not do: it keeps the rooms that were left, and takes a malformed `m.room.encryption` for
no encryption.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bot.matrix.model import Upgrade


@dataclass(slots=True)
class RoomState:
    """The part of one room's state that the bot acts on; the defaults are the specification's for absent events."""

    encrypted: bool = False
    join_rule: str = "invite"
    history_visibility: str = "shared"
    own_name: str | None = None
    encryption: dict[str, Any] = field(default_factory=dict)
    """The newest content of `m.room.encryption`: the algorithm, and when keys are to be changed."""

    replacement: str | None = None
    """The room that replaces this one, by the word of `replaced_by`."""
    replaced_by: str | None = None
    predecessor: str | None = None

    @property
    def public(self) -> bool:
        """Whether strangers may join or read."""
        return self.join_rule == "public" or self.history_visibility == "world_readable"

    def apply(self, event: dict[str, Any], user_id: str) -> None:
        """Take over what a state event says; other events change nothing. `user_id` is the bot's own."""
        content, key = event.get("content"), event.get("state_key")
        if not isinstance(content, dict) or not isinstance(key, str):
            return
        kind = event.get("type")
        if kind == "m.room.encryption" and key == "":
            self.encrypted = True  # it can't be taken back, whatever a later event says (client-server API, 11.12.1.1)
            self.encryption = content
        elif kind == "m.room.tombstone" and key == "":
            self.replacement = _text(content.get("replacement_room")) or None
            self.replaced_by = _text(event.get("sender")) or None
        elif kind == "m.room.create" and key == "":
            predecessor = content.get("predecessor")
            self.predecessor = _text(predecessor.get("room_id")) or None if isinstance(predecessor, dict) else None
        elif kind == "m.room.join_rules" and key == "":
            self.join_rule = _text(content.get("join_rule")) or self.join_rule
        elif kind == "m.room.history_visibility" and key == "":
            self.history_visibility = _text(content.get("history_visibility")) or self.history_visibility
        elif kind == "m.room.member" and key == user_id:
            self.own_name = _text(content.get("displayname")) or None


class Rooms:
    """The joined rooms whose state is known: all of them after the first sync, none before."""

    def __init__(self) -> None:
        self._rooms: dict[str, RoomState] = {}

    def get(self, room_id: str) -> RoomState | None:
        return self._rooms.get(room_id)

    def enter(self, room_id: str) -> RoomState:
        return self._rooms.setdefault(room_id, RoomState())

    def upgrades(self) -> tuple[Upgrade, ...]:
        """The rooms of which each says that the other is its replacement, and its predecessor.

        One word is not enough: anybody may make a room that claims to follow another, or to be followed by it.
        """
        return tuple(
            Upgrade(room_id, state.replacement)
            for room_id, state in self._rooms.items()
            if state.replacement is not None
            and (successor := self._rooms.get(state.replacement)) is not None
            and successor.predecessor == room_id
        )

    def leave(self, room_id: str) -> None:
        self._rooms.pop(room_id, None)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
