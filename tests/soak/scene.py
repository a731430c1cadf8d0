"""What is seen of the rooms while a soak runs: one pair of eyes that follows all of them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Final

from bot.demo.person import LONG_POLL_S
from tests.servers.synapse import Person, RoomEvent
from tests.system.outside import answered

_FILTER: Final = json.dumps(
    {
        "presence": {"not_types": ["*"]},
        "account_data": {"not_types": ["*"]},
        "room": {"timeline": {"limit": 100, "types": ["m.room.message"]}, "ephemeral": {"not_types": ["*"]}},
    }
)


@dataclass(eq=False)
class Watch:
    """Follows the rooms of one person, and tells when a message is settled: answered, or covered by a later answer."""

    person: Person
    bot: str
    _places: dict[str, int] = field(default_factory=dict)
    """Where each message stands in its room."""
    _answered: dict[str, int] = field(default_factory=dict)
    """By room: the place of the newest message that was answered."""
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def run(self) -> None:
        """Follow the rooms until cancelled."""
        query: dict[str, str | int] = {"filter": _FILTER}
        while True:
            answer = await self.person.request("GET", "sync", **query)
            query |= {"since": answer["next_batch"], "timeout": int(LONG_POLL_S * 1000)}
            for room, update in answer.get("rooms", {}).get("join", {}).items():
                events = update["timeline"]["events"]
                if update["timeline"].get("limited"):
                    events = await self.person.messages(room)
                await self._see(room, events)

    async def _see(self, room: str, events: list[RoomEvent]) -> None:
        async with self._news:
            for event in events:
                self._places.setdefault(event["event_id"], len(self._places))
                target = answered(event) if event["sender"] == self.bot else None
                if target is not None:
                    self._answered[room] = max(self._answered.get(room, -1), self._places.get(target, -1))
            self._news.notify_all()

    async def wait_until_settled(self, room: str, event_id: str, within: float) -> None:
        """Wait until the bot has answered a message, or one that came after it."""

        def settled() -> bool:
            place = self._places.get(event_id)
            return place is not None and self._answered.get(room, -1) >= place

        try:
            async with asyncio.timeout(within), self._news:
                await self._news.wait_for(settled)
        except TimeoutError as error:
            raise TimeoutError(f"message {event_id} of {room} was not settled within {within:g} s") from error
