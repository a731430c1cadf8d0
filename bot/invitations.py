"""Answers invitations beside the sync loop: a room that takes minutes to join holds up nobody's messages.

Open invitations are kept in memory only: the homeserver tells of them again at the first sync of each process.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Final, Protocol

import structlog

from bot.matrix import Forbidden, Invite, LoggedOut, MatrixError, NotInRoom, RateLimited, Refused, Unreachable
from bot.pace import Pace
from bot.policy import Rules
from bot.unforeseen import contained

log = structlog.get_logger(__name__)

RETRY_AFTER_S: Final = 5.0
MAX_TRIES: Final = 20


class Membership(Protocol):
    """What answering needs of the homeserver."""

    async def join(self, room_id: str) -> None: ...
    async def leave(self, room_id: str) -> None: ...
    async def is_public(self, room_id: str) -> bool: ...


class Invitations:
    """Joins where an allowed person invites, and declines elsewhere."""

    def __init__(self, membership: Membership, pace: Pace, rules: Rules) -> None:
        self._membership = membership
        self._pace = pace
        self._rules = rules
        self._open: dict[str, Invite] = {}
        self._tries: Counter[str] = Counter()
        self._news = asyncio.Event()

    def came(self, invite: Invite) -> None:
        """Somebody invited the bot."""
        if invite.by_upgrade and invite.room_id in self._open:
            return
        self._open[invite.room_id] = invite
        self._news.set()

    def ended(self, room_id: str) -> None:
        """The invitation was withdrawn, or the bot is out of the room."""
        self._forget(room_id)

    async def run(self) -> None:
        """Answer for as long as the service lives."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_AFTER_S if self._open else None):
                    await self._news.wait()
            self._news.clear()
            await self.answer_open()

    async def answer_open(self) -> None:
        """Answer each open invitation once. A fault leaves it open, up to a limit of tries."""
        unreachable = 0
        for room_id in list(self._open):
            await self._pace.ready()
            invite = self._open.get(room_id)
            if invite is None:
                continue
            try:
                with contained("invite_broke", MatrixError, session=invite.room_id):
                    await self._answer(invite)
            except (Unreachable, RateLimited, LoggedOut) as error:
                unreachable += 1
                if not self._is_given_up(invite, error, alone=unreachable == 1):
                    continue
                log.error("invite_given_up", session=invite.room_id, tries=MAX_TRIES, advice="invite the bot again")
            except (Forbidden, NotInRoom, Refused) as error:
                self._pace.worked()
                log.warning("invite_failed", session=invite.room_id, reason=str(error))
            else:
                self._pace.worked()
            if self._open.get(room_id) is invite:  # else another came meanwhile
                self._forget(room_id)

    def _is_given_up(self, invite: Invite, error: Unreachable | RateLimited | LoggedOut, *, alone: bool) -> bool:
        """Postpone an invitation that can't be answered now; `True` when that was tried often enough."""
        if not self._tries[invite.room_id]:
            log.warning("invite_postponed", session=invite.room_id, reason=str(error))
        is_open = self._pace.open
        if is_open:  # what all rooms suffer from says nothing of this one
            self._tries[invite.room_id] += 1
        if not isinstance(error, Unreachable):
            self._pace.failed(error)
        elif not (is_open and alone):
            # One alone: a homeserver also says so when only the room's own server is out of reach.
            self._pace.doubted(error)
        return self._tries[invite.room_id] >= MAX_TRIES

    def _forget(self, room_id: str) -> None:
        self._open.pop(room_id, None)
        self._tries.pop(room_id, None)

    async def _answer(self, invite: Invite) -> None:
        if not self._rules.allows(invite.inviter):
            await self._decline(invite, "the inviter is not allowed")
        elif not self._rules.allows_room(invite.room_id, public=invite.public):
            await self._decline(invite, "the room is not allowed")
        else:
            await self._join(invite)

    async def _join(self, invite: Invite) -> None:
        await self._membership.join(invite.room_id)
        public = await self._membership.is_public(invite.room_id)
        if self._rules.allows_room(invite.room_id, public=public):
            log.info("room_joined", session=invite.room_id, inviter=invite.inviter)
        else:
            await self._leave(invite, "the room is public and not listed in matrix.allowed_rooms")

    async def _decline(self, invite: Invite, reason: str) -> None:
        if invite.by_upgrade:  # there is nothing to decline, but an invitation of somebody else
            log.info("upgrade_not_followed", session=invite.room_id, by=invite.inviter, reason=reason)
        else:
            await self._leave(invite, reason)

    async def _leave(self, invite: Invite, reason: str) -> None:
        log.info("invite_declined", session=invite.room_id, inviter=invite.inviter, reason=reason)
        await self._membership.leave(invite.room_id)
