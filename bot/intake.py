"""From the homeserver into the inbox: syncs, decides what becomes of each message, and admits it with the token.

The token is stored together with the messages that came before it. A sync that could not be taken in is repeated from
the same token: nothing is lost, and known messages are skipped.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import structlog

from bot.health import Health
from bot.matrix import (
    Invite,
    LoggedOut,
    RateLimited,
    SyncBatch,
    Unreachable,
)
from bot.pace import Pace
from bot.policy import Decision, Details, Rules, decide
from crdt import Edit, Message, StoreUnavailable

log = structlog.get_logger(__name__)

LONG_POLL_MS: Final = 30_000
STALE_AFTER_S: Final = 90.0
"""Three long polls without an answer."""


class Inbox(Protocol):
    """What taking in needs of the store."""

    async def admit(
        self,
        messages: Sequence[Message],
        cursor: str | None = None,
        edits: Sequence[Edit] = (),
        redactions: Sequence[str] = (),
    ) -> list[Message]: ...
    async def waiting(self, session_id: str) -> list[Message]: ...
    async def settle(self, keys: Sequence[str], outcome: str) -> None: ...


class Source(Protocol):
    """What taking in needs of the homeserver."""

    async def sync(self, since: str | None, timeout_ms: int) -> SyncBatch: ...


class Intake:
    """The sync loop. It tells of what it meets, by the functions that it is given.

    `wake` is called with a room that has new messages, `log_in_again` when the login was ended, `invited` and `left`
    when the bot is asked into a room, and when it is out of one.
    """

    def __init__(
        self,
        inbox: Inbox,
        source: Source,
        pace: Pace,
        health: Health,
        rules: Rules,
        *,
        wake: Callable[[str], None],
        log_in_again: Callable[[], Awaitable[None]],
        invited: Callable[[Invite], None],
        left: Callable[[str], None],
    ) -> None:
        self._inbox = inbox
        self._source = source
        self._pace = pace
        self._health = health
        self._rules = rules
        self._wake = wake
        self._log_in_again = log_in_again
        self._invited = invited
        self._left = left

    async def run(self, since: str | None) -> None:
        """Sync for as long as the service lives, beginning at the token `since`.

        Raises:
            LoginRefused, LoggedOut: the login was ended, and there is no way back in.
        """
        while True:
            await self._pace.ready()
            try:
                since = await self._step(since)
            except LoggedOut:
                await self._try_to_log_in()
            except (Unreachable, RateLimited) as error:
                self._health.failing("sync", type(error).__name__)
                log.warning("sync_failed", reason=str(error))
                self._pace.failed(error)
            except StoreUnavailable as error:
                self._health.failing("sync", type(error).__name__)
                log.error("sync_not_stored", reason=str(error))
                self._pace.failed(error)

    async def _try_to_log_in(self) -> None:
        try:
            await self._log_in_again()
        except (Unreachable, RateLimited) as error:
            self._pace.failed(error)
        except StoreUnavailable as error:  # the login stands, only the next start will not know it
            log.error("login_not_stored", reason=str(error))

    async def _step(self, since: str | None) -> str:
        batch = await self._source.sync(since, 0 if since is None else LONG_POLL_MS)
        self._pace.worked()
        # Before anything can fail: none stands in a second sync.
        for invite in batch.invites:
            self._invited(invite)
        admitted = await self._inbox.admit(
            self._wanted(batch),
            batch.next_batch,
            edits=[Edit(edit.event_id, edit.sender, edit.body) for edit in batch.edits],
            redactions=[redaction.event_id for redaction in batch.redactions],
        )
        self._health.ok("sync")
        for session_id in {message.session_id for message in admitted if not message.context}:
            self._wake(session_id)
        for room_id in batch.left:
            self._left(room_id)
            await self._settle_left(room_id)
        return batch.next_batch

    def _wanted(self, batch: SyncBatch) -> list[Message]:
        now_ms = time.time_ns() // 1_000_000
        wanted = []
        for message in batch.messages:
            decision = decide(
                self._rules,
                room_id=message.room_id,
                sender=message.sender,
                mentions_me=message.mentions_me,
                origin_ms=message.origin_ms,
                now_ms=now_ms,
            )
            if decision.fate != "answer":
                _log_decision(decision, message.room_id, message.event_id)
            if decision.fate != "ignore":
                wanted.append(
                    Message(
                        key=message.event_id,
                        session_id=message.room_id,
                        sender=message.sender,
                        text=message.body,
                        context=decision.fate == "context",
                        details=Details(message.thread_root).dump(),
                    )
                )
        return wanted

    async def _settle_left(self, room_id: str) -> None:
        """Settle what waits. A turn that was begun goes to its end: left open, its session could never roll again."""
        keys = [message.key for message in await self._inbox.waiting(room_id) if message.turn_key is None]
        if keys:
            await self._inbox.settle(keys, "room gone")


def _log_decision(decision: Decision, room_id: str, event_id: str) -> None:
    log.info("message_not_answered", session=room_id, message=event_id, fate=decision.fate, reason=decision.reason)
