"""Works the outbox: sends what was committed, in each room's order, until the homeserver has it.

A send that fails in passing is repeated with the same transaction id, so the homeserver stores it once. Homeservers
forget transaction ids (Synapse after 24 h) and never know another device's: a delivery in doubt since long, or from
before a new login, is first looked for among our own messages in the room.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

import structlog

from bot.matrix import LoggedOut, MatrixError, RateLimited, Unreachable
from bot.pace import Pace
from crdt import Delivery

log = structlog.get_logger(__name__)

TRANSACTION_ID_TRUSTED_S: Final = 12 * 3600
"""Half of the time for which Synapse remembers transaction ids."""
MAX_PARALLEL_SENDS: Final = 8


class Outbox(Protocol):
    """What delivering needs of the store."""

    async def due_deliveries(self) -> list[Delivery]: ...
    async def delivery_attempted(self, delivery_id: str) -> None: ...
    async def delivery_sent(self, delivery_id: str, event_id: str) -> None: ...
    async def delivery_dropped(self, delivery_id: str, reason: str) -> None: ...


class Sender(Protocol):
    """What delivering needs of the homeserver."""

    async def send(self, room_id: str, event_type: str, content: Mapping[str, Any], txn_id: str) -> str: ...
    async def find_own(self, room_id: str, delivery_id: str) -> str | None: ...


class Deliveries:
    """Sends deliveries as they become due."""

    def __init__(
        self,
        outbox: Outbox,
        sender: Sender,
        pace: Pace,
        reached: Callable[[str], Awaitable[None]],
        *,
        device_is_new: bool = False,
    ) -> None:
        self._outbox = outbox
        self._sender = sender
        self._pace = pace
        self._reached = reached
        self._device_is_new = device_is_new
        self._woken = asyncio.Event()
        self._slots = asyncio.Semaphore(MAX_PARALLEL_SENDS)

    def wake(self) -> None:
        """There is something new in the outbox."""
        self._woken.set()

    async def run(self) -> None:
        """Send for as long as the service lives."""
        while True:
            self._woken.clear()
            if not await self.send_due():
                await self._woken.wait()

    async def send_due(self) -> int:
        """Try each room's oldest unsent delivery once; returns how many there were."""
        due = await self._outbox.due_deliveries()
        async with asyncio.TaskGroup() as sends:
            for delivery in due:
                sends.create_task(self._send(delivery))
        return len(due)

    async def _send(self, delivery: Delivery) -> None:
        async with self._slots:
            await self._pace.ready()
            try:
                event_id = await self._find(delivery) or await self._attempt(delivery)
            except (Unreachable, RateLimited, LoggedOut) as error:
                self._pace.failed(error)
                return
            except MatrixError as error:
                log.warning("delivery_refused", session=delivery.session_id, reason=str(error))
                await self._outbox.delivery_dropped(delivery.delivery_id, type(error).__name__)
                return
            self._pace.worked()
            await self._reached("sent")
            await self._outbox.delivery_sent(delivery.delivery_id, event_id)
            log.info("delivered", session=delivery.session_id, delivery=delivery.delivery_id, event_id=event_id)

    async def _find(self, delivery: Delivery) -> str | None:
        """Look for a delivery that may have arrived although its transaction id can't show it any more."""
        if delivery.first_attempt_at is None:
            return None
        if not self._device_is_new and time.time() - delivery.first_attempt_at < TRANSACTION_ID_TRUSTED_S:
            return None
        return await self._sender.find_own(delivery.session_id, delivery.delivery_id)

    async def _attempt(self, delivery: Delivery) -> str:
        await self._outbox.delivery_attempted(delivery.delivery_id)
        return await self._sender.send(
            delivery.session_id, delivery.event_type, json.loads(delivery.content), delivery.delivery_id
        )
