"""Follows rooms to their replacements: the conversation goes on in the new room where it stood in the old one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from bot.matrix import Upgrade

log = structlog.get_logger(__name__)


class SessionStore(Protocol):
    """What following needs of the store."""

    async def move_session(self, old: str, new: str) -> bool: ...


class Upgrades:
    """Knows which room's session each room has. `wake` is called with a room that has taken over another's session."""

    def __init__(self, store: SessionStore, wake: Callable[[str], None]) -> None:
        self._store = store
        self._wake = wake
        self._replaced: dict[str, str] = {}

    async def follow(self, upgrades: Iterable[Upgrade]) -> None:
        """Move the sessions of rooms that were replaced. Before the messages of the same sync are admitted.

        Known upgrades are passed over: each sync of a process tells of all. Raises what the store raises; it is then
        repeated with the sync.
        """
        for upgrade in upgrades:
            newest = self.session_of(upgrade.new)  # a sync tells of rooms in any order: this one may be replaced, too
            if upgrade.old in self._replaced or newest == upgrade.old:
                continue
            moved = await self._store.move_session(upgrade.old, newest)
            self._replaced[upgrade.old] = upgrade.new
            if moved:
                log.info("room_upgraded", session=upgrade.old, replacement=newest)
                self._wake(newest)

    def session_of(self, room_id: str) -> str:
        """The room whose session a room's messages belong to: its own, or that of the room that has replaced it."""
        while (newer := self._replaced.get(room_id)) is not None:
            room_id = newer
        return room_id
