"""An outbox over a real store, the homeserver that it is sent to, and what sends: with pauses of milliseconds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from bot import deliver, pace
from bot.deliver import Deliveries
from bot.matrix import Unreachable
from bot.pace import Pace
from crdt import Delivery, Store
from tests.bot.edge import ROOM, Homeserver, eventually, nowhere

OTHER = "!other:example.org"
DOWN = Unreachable("https://example.org", "no connection")


@dataclass
class Post:
    """An outbox and what sends it. `replaced`: which room by which."""

    store: Store
    homeserver: Homeserver
    pace: Pace
    deliveries: Deliveries
    login: int = 0
    replaced: dict[str, str] = field(default_factory=dict)
    reached: list[str] = field(default_factory=list)

    async def queue(self, *bodies: str, room: str = ROOM) -> list[str]:
        ids = [f"musher-{room}-{body}" for body in bodies]
        deliveries = [
            Delivery(delivery_id, room, json.dumps({"body": body}))
            for delivery_id, body in zip(ids, bodies, strict=True)
        ]
        await self.store.settle([], "answered", deliveries)
        self.deliveries.wake()
        return ids

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.deliveries.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def is_empty(self) -> bool:
        return not await self.store.due_deliveries()

    async def work(self) -> None:
        """Run until the outbox is empty."""
        async with self.running():
            await eventually(self.is_empty)

    @classmethod
    @asynccontextmanager
    async def of(cls, path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Self]:
        """An outbox in which nothing waits."""
        monkeypatch.setattr(pace, "FIRST_PAUSE_S", 0.01)
        monkeypatch.setattr(pace, "LONGEST_PAUSE_S", 0.02)
        monkeypatch.setattr(pace, "FIRST_ROOM_PAUSE_S", 0.01)
        monkeypatch.setattr(pace, "SHARE_S", 0.01)
        monkeypatch.setattr(pace, "LOOK_EVERY_S", 0.001)
        monkeypatch.setattr(deliver, "STORE_RETRY_S", 0.001)
        async with Store.open(path) as store:
            homeserver, shared_pace = Homeserver(), Pace()
            made: list[Self] = []
            deliveries = Deliveries(
                store,
                homeserver,
                shared_pace,
                nowhere,
                login=lambda: made[0].login,
                moved_to=lambda room_id: made[0].replaced.get(room_id, room_id),
            )
            made.append(cls(store, homeserver, shared_pace, deliveries))
            yield made[0]
