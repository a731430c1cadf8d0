"""A room whose messages are answered by real turns, from a real store, by a model that was told what to say."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from typing import Any

from bot.turn import Turns
from crdt import Delivery, Store, TranscriptEntry
from tests.bot.edge import ROOM, ToldModel, message, nowhere


@dataclass
class Room:
    """A room with its store and model, and the turns that are under test."""

    store: Store
    model: ToldModel
    turns: Turns
    typed: list[bool]
    announced: list[str] = field(default_factory=list)
    queued: list[None] = field(default_factory=list)
    said: int = 0

    async def says(self, *said: str, **fields: Any) -> None:
        """Admit messages, each with the next key: $1, $2, …"""
        keys = range(self.said + 1, self.said + len(said) + 1)
        self.said += len(said)
        await self.store.admit([message(f"${n}", text, **fields) for n, text in zip(keys, said, strict=True)])

    async def answer(self) -> None:
        async with asyncio.timeout(30):
            while await self.turns.answer_next(ROOM):
                pass

    async def transcript(self) -> list[TranscriptEntry]:
        return await self.store.read_transcript(ROOM)

    async def replies(self) -> list[str]:
        return [entry.text for entry in await self.transcript() if entry.role == "assistant"]

    async def deliveries(self) -> list[Delivery]:
        """All that waits in the outbox, taken out of it."""
        taken = []
        while due := await self.store.due_deliveries():
            for delivery in due:
                taken.append(delivery)
                await self.store.delivery_sent(delivery.delivery_id, "$sent")
        return taken

    async def contents(self) -> list[dict[str, Any]]:
        return [json.loads(delivery.content) for delivery in await self.deliveries()]

    def change(self, **fields: Any) -> None:
        self.turns = replace(self.turns, **fields)

    @classmethod
    def of(cls, store: Store) -> Room:
        """A room in that store that nobody has said anything in."""
        model, typed, announced, queued = ToldModel(), list[bool](), list[str](), list[None]()

        async def typing(_room_id: str, on: bool, _timeout_ms: int) -> None:
            typed.append(on)

        turns = Turns(
            store=store,
            model=model,
            typing=typing,
            announce=announced.append,
            expect=lambda _: None,
            queued=lambda: queued.append(None),
            reached=nowhere,
            personas={"default": "Be brief.", "dispatcher": "Speak like a dispatcher."},
        )
        return cls(store, model, turns, typed, announced, queued)
