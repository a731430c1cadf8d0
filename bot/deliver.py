"""Works the outbox: sends what was committed, in each room's order, until the homeserver has it.

A send that fails in passing is repeated with the same transaction id, so the homeserver stores it once. Homeservers
forget transaction ids (Synapse after 24 h, and with the login that is ended, even if the next one has the same device
id): a delivery in doubt since long, since another login, or since an earlier start, is first looked for among our own
messages in the room. How long ago an earlier start was, nobody knows: the wall clock may have stepped in between.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, Protocol

import structlog

from bot import texts
from bot.errors import MusherError
from bot.matrix import KeysDamaged, LoggedOut, MatrixError, RateLimited, Refused, RoomReplaced, Unreachable
from bot.notices import notice
from bot.pace import Pace, RoomPauses
from bot.trouble import Trouble
from bot.unforeseen import ENDS
from bot.upgrades import stays
from crdt import CrdtError, Delivery, StoreUnavailable

log = structlog.get_logger(__name__)

TRANSACTION_ID_TRUSTED_S: Final = 12 * 3600
"""Half of the time for which Synapse remembers transaction ids."""
MAX_PARALLEL_SENDS: Final = 8
BROKEN_TRIES: Final = 3
"""Of a delivery that meets something unforeseen each time."""
REPLACEMENT_PATIENCE_S: Final = 240.0
"""How long a reply waits for the bot to be in the room that has replaced its own: people have to invite it there."""
STORE_RETRY_S: Final = 1.0
"""Pause before a store that could not be read or written is asked again."""


DeliveryOutcome = Literal["sent", "dropped"]


def _unwatched(_outcome: DeliveryOutcome) -> None:
    """Nobody counts."""


class Outbox(Protocol):
    """What delivering needs of the store."""

    async def due_deliveries(self) -> list[Delivery]: ...
    async def delivery_attempted(self, delivery_id: str) -> None: ...
    async def delivery_sent(self, delivery_id: str, event_id: str) -> None: ...
    async def delivery_dropped(self, delivery_id: str, reason: str) -> None: ...
    async def delivery_readdressed(self, delivery_id: str, session_id: str, content: str) -> None: ...
    async def settle(self, keys: Sequence[str], outcome: str, deliveries: Sequence[Delivery] = ()) -> None: ...


class Sender(Protocol):
    """What delivering needs of the homeserver."""

    async def send(self, room_id: str, event_type: str, content: Mapping[str, Any], txn_id: str) -> str: ...
    async def find_own(self, room_id: str, delivery_id: str) -> str | None: ...
    def announce(self, room_id: str) -> None: ...


class Deliveries:
    """Sends deliveries as they become due.

    `login` names the present login, somehow; `moved_to` tells in which room the conversation of a room goes on; `ended`
    hears what became of each delivery.
    """

    def __init__(
        self,
        outbox: Outbox,
        sender: Sender,
        pace: Pace,
        reached: Callable[[str], Awaitable[None]],
        *,
        login: Callable[[], object] = lambda: None,
        moved_to: Callable[[str], str] = stays,
        ended: Callable[[DeliveryOutcome], None] = _unwatched,
    ) -> None:
        self._outbox = outbox
        self._sender = sender
        self._pace = pace
        self._rooms = RoomPauses(pace.clock)
        self._store_trouble = Trouble("delivery_postponed", level="error")
        self._reached = reached
        self._login = login
        self._tried: dict[str, tuple[object, float]] = {}
        """What this process has tried to send: with which login, and when."""
        self._moved_to = moved_to
        self._replaced_since: dict[str, float] = {}
        self._ended = ended
        self._woken = asyncio.Event()
        self._slots = asyncio.Semaphore(MAX_PARALLEL_SENDS)
        self._sending: set[str] = set()
        self._broken: Counter[str] = Counter()
        self._notices: set[str] = set()

    def announce(self, room_id: str) -> None:
        """There will be something for this room in the outbox in a moment."""
        if self._pace.open and not self._rooms.holds(room_id):
            self._sender.announce(room_id)

    def expect(self, deliveries: Sequence[Delivery]) -> None:
        """These are about to be put into the outbox with their first attempt noted, which is still to come.

        Told before they stand there: they may be sent from that moment on, and would be looked for as left over from an
        earlier start.
        """
        for delivery in deliveries:
            self._note_attempt(delivery)

    def wake(self) -> None:
        """There is something new in the outbox."""
        self._woken.set()

    async def run(self) -> None:
        """Send for as long as the service lives: one delivery of a room at a time, the rooms beside each other."""
        async with asyncio.TaskGroup() as sends:
            while True:
                self._woken.clear()
                # Of a room that is busy as the outbox is read, the delivery just sent may still stand in it; the end
                # of that send has it read again.
                busy = frozenset(self._sending)
                for delivery in await self._due():
                    if delivery.session_id not in busy:
                        self._sending.add(delivery.session_id)
                        send = sends.create_task(self._send(delivery), name=f"send {delivery.delivery_id}")
                        send.add_done_callback(partial(self._done, delivery.session_id))
                await self._woken.wait()

    def _done(self, session_id: str, _send: asyncio.Task[None]) -> None:
        self._sending.discard(session_id)
        self.wake()

    async def send_due(self) -> int:
        """Try each room's oldest unsent delivery once; returns how many there were. Not beside `run`."""
        due = await self._due()
        async with asyncio.TaskGroup() as sends:
            for delivery in due:
                sends.create_task(self._send(delivery))
        return len(due)

    async def _due(self) -> list[Delivery]:
        while True:
            try:
                return await self._outbox.due_deliveries()
            except StoreUnavailable as error:
                await self._postpone(error)

    async def _postpone(self, error: StoreUnavailable) -> None:
        self._store_trouble.met(str(error))
        await asyncio.sleep(STORE_RETRY_S)

    async def _send(self, delivery: Delivery) -> None:
        # Waited for outside of the slots: rooms that fail must not take them from those that don't.
        await self._rooms.ready(delivery.session_id)
        async with self._slots:
            await self._pace.ready()
            try:
                await self._send_or_give_up(delivery)
            except StoreUnavailable as error:
                await self._postpone(error)
            else:
                self._store_trouble.over()

    async def _send_or_give_up(self, delivery: Delivery) -> None:
        try:
            await self._send_now(delivery)
        except (*ENDS, MusherError, CrdtError):
            raise
        except BaseException as error:  # the room waits, and is told in the end; the others go on
            await self._broke(delivery, error)

    async def _broke(self, delivery: Delivery, error: BaseException) -> None:
        """Try a delivery again that met something unforeseen; in the end give it up, and say so in the room."""
        if not self._broken[delivery.delivery_id]:
            log.error("delivery_broke", session=delivery.session_id, exc_info=error)
        self._rooms.failed(delivery.session_id)
        self._broken[delivery.delivery_id] += 1
        if self._broken[delivery.delivery_id] < BROKEN_TRIES:
            return
        told = notice(delivery.session_id, texts.UNSENT, "broken", delivery.delivery_id)
        if delivery.delivery_id not in self._notices:
            self._notices.add(told.delivery_id)
            await self._outbox.settle((), "broken", [told])
        await self._drop(delivery, "broken")

    async def _send_now(self, delivery: Delivery) -> None:
        try:
            event_id = await self._find(delivery) or await self._attempt(delivery)
        except Unreachable as error:
            self._unreachable(delivery.session_id, error)
            return
        except RateLimited as error:
            self._pace.failed(error)
            self._rooms.failed(delivery.session_id)
            return
        except LoggedOut as error:
            self._pace.failed(error)
            return
        except RoomReplaced as error:
            await self._replaced(delivery, error)
            return
        except KeysDamaged:  # the next start makes new keys, and sends this then
            raise
        except MatrixError as error:
            await self._refused(delivery, error)
            return
        self._answered(delivery.session_id)
        await self._reached("sent")
        await self._outbox.delivery_sent(delivery.delivery_id, event_id)
        self._tried.pop(delivery.delivery_id, None)
        self._ended("sent")
        log.info("delivered", session=delivery.session_id, delivery=delivery.delivery_id, event_id=event_id)

    async def _refused(self, delivery: Delivery, error: MatrixError) -> None:
        self._answered(delivery.session_id)
        log.warning("delivery_refused", session=delivery.session_id, reason=str(error))
        await self._drop(delivery, type(error).__name__)

    async def _replaced(self, delivery: Delivery, error: RoomReplaced) -> None:
        """Send it where the conversation goes on, once that is known. The closed room has not taken it."""
        self._pace.worked()
        room_id, now = delivery.session_id, self._pace.clock()
        newest = self._moved_to(room_id)
        if newest != room_id:
            await self._outbox.delivery_readdressed(delivery.delivery_id, newest, _out_of_thread(delivery.content))
            self._tried.pop(delivery.delivery_id, None)
            self._rooms.worked(room_id)
            log.info("delivery_readdressed", session=room_id, replacement=newest, delivery=delivery.delivery_id)
        elif now - self._replaced_since.setdefault(room_id, now) < REPLACEMENT_PATIENCE_S:
            self._rooms.failed(room_id)
        else:
            await self._refused(delivery, error)

    async def _drop(self, delivery: Delivery, reason: str) -> None:
        await self._outbox.delivery_dropped(delivery.delivery_id, reason)
        self._tried.pop(delivery.delivery_id, None)
        self._ended("dropped")

    def _answered(self, room_id: str) -> None:
        self._pace.worked()
        if self._rooms.worked(room_id):
            log.info("room_answers_again", session=room_id)

    def _unreachable(self, room_id: str, error: Unreachable) -> None:
        """Find out who is to wait: the room, when it fails while the homeserver otherwise answers; else all."""
        known, alone = self._rooms.is_failing(room_id), self._pace.open
        pause_s = self._rooms.failed(room_id, alone=alone)
        if alone and not known:
            log.warning("room_unreachable", session=room_id, reason=str(error), retry_after_s=pause_s)
        if not (known and alone):
            self._pace.doubted(error)

    async def _find(self, delivery: Delivery) -> str | None:
        """Look for a delivery that may have arrived although its transaction id can't show it any more."""
        if not delivery.attempts or self._is_remembered(delivery):
            return None
        try:
            return await self._sender.find_own(delivery.session_id, delivery.delivery_id)
        except Refused as error:  # whether the room takes it is for the send to find out
            log.warning("delivery_not_looked_for", session=delivery.session_id, reason=str(error))
            return None

    def _is_remembered(self, delivery: Delivery) -> bool:
        """Whether the homeserver still knows the transaction id, if the delivery has arrived."""
        login, since = self._tried.get(delivery.delivery_id, (None, -math.inf))
        return login == self._login() and self._pace.clock() - since < TRANSACTION_ID_TRUSTED_S

    def _note_attempt(self, delivery: Delivery) -> None:
        self._tried[delivery.delivery_id] = (self._login(), self._pace.clock())

    async def _attempt(self, delivery: Delivery) -> str:
        if not self._is_remembered(delivery):
            self._note_attempt(delivery)
        if not delivery.attempts:
            await self._outbox.delivery_attempted(delivery.delivery_id)
        return await self._sender.send(
            delivery.session_id, delivery.event_type, json.loads(delivery.content), delivery.delivery_id
        )


def _out_of_thread(content: str) -> str:
    """The content of a message for another room, where its thread is not: homeservers refuse such a relation."""
    fields: dict[str, Any] = json.loads(content)
    relation = fields.get("m.relates_to", {})
    if relation.get("rel_type") == "m.thread":
        fields["m.relates_to"] = {"m.in_reply_to": relation["m.in_reply_to"]}
    return json.dumps(fields)
