"""Follows rooms to their replacements: the conversation goes on in the new room where it stood in the old one.

When the bot is put out of the new room, it goes back: people who undo an upgrade go on in the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Protocol

import structlog

from bot.matrix import Upgrade
from crdt import StoreUnavailable

log = structlog.get_logger(__name__)


def stays(room_id: str) -> str:
    """Tell where a conversation goes on, for whom no room is ever replaced."""
    return room_id


class SessionStore(Protocol):
    """What following needs of the store."""

    async def move_session(self, old: str, new: str) -> bool: ...


class Upgrades:
    """Knows which room's session each room has. `wake` is called with a room that has taken over another's session."""

    def __init__(self, store: SessionStore, wake: Callable[[str], None]) -> None:
        self._store = store
        self._wake = wake
        self._replaced: dict[str, str] = {}
        self._gone: set[str] = set()
        """Rooms that the bot has left since they were told of."""
        self._in_doubt: set[tuple[str, str]] = set()

    async def follow(self, upgrades: Iterable[Upgrade], left: Collection[str] = ()) -> None:
        """Move the sessions of rooms that were replaced, and back from those that were left.

        Before the messages of the same sync are admitted. Known upgrades are passed over: each sync of a process tells
        of all. Raises what the store raises; it is then repeated with the sync.
        """
        for upgrade in upgrades:
            self._gone -= {upgrade.old, upgrade.new}
            newest = self.session_of(upgrade.new)  # a sync tells of rooms in any order: this one may be replaced, too
            if upgrade.old in self._replaced or newest == upgrade.old:
                continue
            moved = await self._moved(upgrade.old, newest)
            self._replaced[upgrade.old] = upgrade.new
            if moved:
                log.info("room_upgraded", session=upgrade.old, replacement=newest)
                self._wake(newest)
        self._gone.update(left)
        await self._go_back(left)

    async def _go_back(self, left: Collection[str]) -> None:
        for old, new in list(self._replaced.items()):
            if new not in left or new in self._replaced or old in self._gone:
                continue
            moved = await self._moved(new, old)
            del self._replaced[old]
            if moved:
                log.info("room_upgrade_undone", session=new, back_to=old)
                self._wake(old)

    async def _moved(self, old: str, new: str) -> bool:
        """Move a session; returns whether that was done, now or by a try that was reported as failed."""
        try:
            moved = await self._store.move_session(old, new)
        except StoreUnavailable:
            self._in_doubt.add((old, new))
            raise
        in_doubt = (old, new) in self._in_doubt
        self._in_doubt.discard((old, new))
        return moved or in_doubt

    def session_of(self, room_id: str) -> str:
        """The room whose session a room's messages belong to: its own, or that of the room that has replaced it."""
        while (newer := self._replaced.get(room_id)) is not None:
            room_id = newer
        return room_id
