"""From the homeserver into the inbox: syncs, decides what becomes of each message, and admits it with the token.

The token is stored together with the messages that came before it. A sync that could not be taken in is repeated from
the same token: nothing is lost, and known messages are skipped.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, Protocol

import structlog

from bot import texts
from bot.errors import MusherError
from bot.health import Health
from bot.matrix import (
    Invite,
    LoggedOut,
    NotAHomeserver,
    RateLimited,
    Refused,
    SyncBatch,
    Undecryptable,
    Unreachable,
)
from bot.notices import notice
from bot.pace import Pace
from bot.policy import CLOCK_SKEW_MS, Decision, Details, Rules, decide
from bot.trouble import Trouble
from bot.unforeseen import ENDS
from bot.upgrades import Upgrades
from crdt import CrdtError, Delivery, Edit, Message, StoreUnavailable

log = structlog.get_logger(__name__)

LONG_POLL_MS: Final = 2_500
"""Short, since a sync that is forgotten looks like one without news, and the end of a fault is to be noticed in 5 s."""
STALE_AFTER_S: Final = 30.0
"""Many long polls without an answer."""
PATIENCE_S: Final = 15.0
"""A homeserver that is away for less than this leaves the service ready."""
STORE_RETRY_S: Final = 1.0
"""Pause before a store that could not take something in is asked again."""
BROKEN_RETRY_S: Final = 5.0
SYNCS_APART_S: Final = 1.0
"""While something fails. The bot's own replies, of which only the answer was lost, would each cost a sync."""
LOGIN_EVERY_S: Final = 4.0
"""Each is several requests."""


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
    async def move_session(self, old: str, new: str) -> bool: ...
    async def settle(self, keys: Sequence[str], outcome: str, deliveries: Sequence[Delivery] = ()) -> None: ...


class Source(Protocol):
    """What taking in needs of the homeserver."""

    async def sync(self, since: str | None, timeout_ms: int) -> SyncBatch: ...


def _nothing() -> None:
    """Nobody waits for the outbox."""


class Intake:
    """The sync loop. It tells of what it meets, by the functions that it is given.

    `wake` is called with a room that has new messages, `log_in_again` when the login was ended, `invited` and `left`
    when the bot is asked into a room, and when it is out of one, `queued` when there is something new in the outbox,
    `unreadable` for each message that could not be decrypted.
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
        queued: Callable[[], None] = _nothing,
        unreadable: Callable[[], None] = _nothing,
    ) -> None:
        self._inbox = inbox
        self._source = source
        self._pace = pace
        self._health = health
        self._rules = rules
        # Without a token nobody knows what was answered before: a new database in rooms that the bot is in already.
        since_start_ms = time.time_ns() // 1_000_000 - CLOCK_SKEW_MS
        self._first_rules = replace(rules, answer_after_ms=max(rules.answer_after_ms, since_start_ms))
        self._wake = wake
        self._upgrades = Upgrades(inbox, wake)
        self._log_in_again = log_in_again
        self._invited = invited
        self._left = left
        self._queued = queued
        self._unreadable = unreadable
        self._login_ended = False
        self._admitted_in_doubt = False
        self._logged_in_at = self._asked_at = -math.inf
        self._sync_trouble = Trouble("sync_failed")
        self._store_trouble = Trouble("sync_not_stored", level="error")
        self._unforeseen = Trouble("sync_broke", level="error")

    async def run(self, since: str | None) -> None:
        """Sync for as long as the service lives, beginning at the token `since`.

        Raises:
            LoginRefused, LoggedOut: the login was ended, and there is no way back in.
        """
        while True:
            await self._pace.spare(self._asked_at, LOGIN_EVERY_S if self._login_ended else SYNCS_APART_S)
            await self._pace.ready()
            self._asked_at = self._pace.clock()
            if self._login_ended:  # a sync may succeed before: with a login that is made, but not seen to
                await self._try_to_log_in()
                continue
            try:
                since = await self._step(since)
            except LoggedOut as error:
                if time.monotonic() - self._logged_in_at < LOGIN_EVERY_S:
                    self._pace.failed(
                        error
                    )  # who knows the login again, but not in a sync, would be asked in a hot loop
                else:
                    self._login_ended = True
                    await self._try_to_log_in()
            except (Unreachable, RateLimited, Refused) as error:  # whoever refuses a sync stands before the homeserver
                self._health.failing("sync", str(error))
                self._sync_trouble.met(str(error))
                self._pace.failed(error)
            except StoreUnavailable as error:
                self._health.failing("sync", str(error))
                self._store_trouble.met(str(error))
                await asyncio.sleep(STORE_RETRY_S)
            except (*ENDS, MusherError, CrdtError):
                raise
            except BaseException as error:  # nothing is skipped: the same sync again, until it can be taken in
                self._health.failing("sync", f"something unforeseen, see sync_broke in the log: {error!r}")
                self._unforeseen.met(repr(error), exc_info=error)
                await asyncio.sleep(BROKEN_RETRY_S)

    def session_of(self, room_id: str) -> str:
        """The room whose session a room's messages belong to: its own, or that of the room that has replaced it."""
        return self._upgrades.session_of(room_id)

    async def _try_to_log_in(self) -> None:
        try:
            await self._log_in_again()
        except (Unreachable, RateLimited, NotAHomeserver, StoreUnavailable) as error:
            # It was a homeserver when the service started: whatever answers now stands before it, and passes.
            self._health.failing("sync", str(error))
            self._sync_trouble.met(str(error))
            self._pace.failed(error)
        else:
            self._login_ended = False
            self._logged_in_at = time.monotonic()
            self._pace.worked()

    async def _step(self, since: str | None) -> str:
        # A long poll would tell of the end of a fault only with the next news.
        at_once = since is None or not self._pace.open
        batch = await self._source.sync(since, 0 if at_once else LONG_POLL_MS)
        self._pace.worked()
        self._sync_trouble.over()
        # Before anything can fail: none stands in a second sync.
        for invite in batch.invites:
            self._invited(invite)
        await self._upgrades.follow(batch.upgrades, batch.left)
        news = await self._admit(batch, since)
        self._unforeseen.over()
        self._health.ok("sync")
        with_news = {message.session_id for message in news if not message.context}
        for session_id in with_news | {self._upgrades.session_of(each.room_id) for each in batch.redactions}:
            self._wake(session_id)
        await self._tell_of_unreadable(batch.undecryptable)
        await self._tell_of_broken(batch.broken, batch.next_batch)
        for room_id in batch.left:
            self._left(room_id)
            await self._settle_left(room_id)
        return batch.next_batch

    async def _admit(self, batch: SyncBatch, since: str | None) -> Sequence[Message]:
        """Store what a sync brought; returns the messages that nobody was woken for yet."""
        if batch.next_batch == since and not (batch.messages or batch.edits or batch.redactions):
            return []  # most long polls end so; a commit each time would keep a disk from its rest
        wanted = self._wanted(batch, self._first_rules if since is None else self._rules)
        try:
            admitted = await self._inbox.admit(
                wanted,
                batch.next_batch,
                edits=[Edit(edit.event_id, edit.sender, edit.body) for edit in batch.edits],
                redactions=[redaction.event_id for redaction in batch.redactions],
            )
        except StoreUnavailable:
            self._admitted_in_doubt = True
            raise
        # What could not be stored may have been, after all: then the same sync again brings nothing that is new.
        news, self._admitted_in_doubt = wanted if self._admitted_in_doubt else admitted, False
        self._store_trouble.over()
        return news

    def _wanted(self, batch: SyncBatch, rules: Rules) -> list[Message]:
        now_ms = time.time_ns() // 1_000_000
        wanted = []
        for message in batch.messages:
            decision = decide(
                rules,
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
                        session_id=self._upgrades.session_of(message.room_id),
                        sender=message.sender,
                        text=message.body,
                        context=decision.fate == "context",
                        details=Details(message.thread_root, message.thread_root and message.room_id).dump(),
                    )
                )
        return wanted

    async def _tell_of_unreadable(self, undecryptable: Sequence[Undecryptable]) -> None:
        """Say in the room that a message could not be read: once for a key, however often the sync is repeated."""
        for one in undecryptable:
            self._unreadable()
            key = f"{one.sender} {one.session_id}"
            told = notice(one.room_id, texts.UNREADABLE, "unreadable", key, reply_to=one.event_id)
            log.warning("message_unreadable_told", session=one.room_id, user=one.sender, message=one.event_id)
            await self._inbox.settle((), "unreadable", [told])
            self._queued()

    async def _tell_of_broken(self, rooms: Sequence[str], next_batch: str) -> None:
        """Say in rooms that something of them could not be read, which the log tells of: once for a sync."""
        for room_id in rooms:
            await self._inbox.settle((), "broken", [notice(room_id, texts.UNREAD, "broken", next_batch)])
            self._queued()

    async def _settle_left(self, room_id: str) -> None:
        """Settle what waits. A turn that was begun goes to its end: left open, its session could never roll again."""
        keys = [message.key for message in await self._inbox.waiting(room_id) if message.turn_key is None]
        if keys:
            await self._inbox.settle(keys, "room gone")


def _log_decision(decision: Decision, room_id: str, event_id: str) -> None:
    log.info("message_not_answered", session=room_id, message=event_id, fate=decision.fate, reason=decision.reason)
