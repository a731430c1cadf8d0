"""People who talk in rooms of a real homeserver, over the plain client-server API.

They share no code with the bot's Matrix library, so what they see is what any other client would.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

import aiohttp

from bot.demo import person
from bot.demo.homeserver import Homeserver
from bot.demo.person import LONG_POLL_S

T = TypeVar("T")
RoomEvent = dict[str, Any]
"""A Matrix event as the homeserver gives it to clients."""
PATIENCE = 60.0
"""Seconds to wait for something that should happen, before the test fails."""
PASSWORD = "correct horse battery staple"


class Person(person.Person):
    """A user of the homeserver who can do and wait for whatever a test needs."""

    @classmethod
    @asynccontextmanager
    async def on(cls, homeserver: Homeserver, user: str, password: str = PASSWORD) -> AsyncIterator[Self]:
        """Register `user` unless they exist, and log them in on a new device."""
        await homeserver.register(user, password)
        credentials = await homeserver.login(user, password)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
            yield cls(homeserver.url, credentials, http)

    # Rooms

    async def create_encrypted_room(self, invite: Sequence[str] = (), **options: object) -> str:
        encryption = {
            "type": "m.room.encryption",
            "state_key": "",
            "content": {"algorithm": "m.megolm.v1.aes-sha2"},
        }
        return await self.create_room(invite, initial_state=[encryption], **options)

    async def kick(self, room: str, user_id: str) -> None:
        await self.request("POST", "rooms", room, "kick", body={"user_id": user_id})

    async def ban(self, room: str, user_id: str) -> None:
        await self.request("POST", "rooms", room, "ban", body={"user_id": user_id})

    async def leave(self, room: str) -> None:
        await self.request("POST", "rooms", room, "leave", body={})

    async def upgrade_room(self, room: str, version: str = "12") -> str:
        """Replace the room by a new one and return the new one's id."""
        answer = await self.request("POST", "rooms", room, "upgrade", body={"new_version": version})
        return str(answer["replacement_room"])

    async def state(self, room: str, kind: str, state_key: str = "") -> dict[str, Any]:
        """The content of one state event."""
        content: dict[str, Any] = await self.request("GET", "rooms", room, "state", kind, state_key)
        return content

    async def set_state(self, room: str, kind: str, content: dict[str, Any], state_key: str = "") -> str:
        answer = await self.request("PUT", "rooms", room, "state", kind, state_key, body=content)
        return str(answer["event_id"])

    async def set_power_levels(self, room: str, users: dict[str, int] | None = None, **levels: object) -> None:
        """Change the levels of `users` and others (`events_default=50`), and leave the rest as it is."""
        content = await self.state(room, "m.room.power_levels")
        content["users"] = content.get("users", {}) | (users or {})
        await self.set_state(room, "m.room.power_levels", content | levels)

    # Saying things

    async def edit(self, room: str, event_id: str, text: str) -> str:
        return await self.say(
            room,
            f"* {text}",
            **{
                "m.new_content": {"msgtype": "m.text", "body": text},
                "m.relates_to": {"rel_type": "m.replace", "event_id": event_id},
            },
        )

    async def react(self, room: str, event_id: str, key: str) -> str:
        relation = {"rel_type": "m.annotation", "event_id": event_id, "key": key}
        return await self.send(room, "m.reaction", {"m.relates_to": relation})

    async def redact(self, room: str, event_id: str) -> str:
        answer = await self.request("PUT", "rooms", room, "redact", event_id, uuid.uuid4().hex, body={})
        return str(answer["event_id"])

    async def type(self, room: str, typing: bool = True) -> None:
        body = {"typing": True, "timeout": 30_000} if typing else {"typing": False}
        await self.request("PUT", "rooms", room, "typing", self.user_id, body=body)

    # Seeing what others do

    async def messages(self, room: str) -> list[RoomEvent]:
        """All events of the room's timeline that this person may see, oldest first."""
        events: list[RoomEvent] = []
        query: dict[str, str | int] = {"dir": "f", "limit": 1000}
        while True:
            page = await self.request("GET", "rooms", room, "messages", **query)
            events += page["chunk"]
            if "end" not in page:
                return events
            query["from"] = page["end"]

    async def said(self, room: str, sender: str | None = None) -> list[RoomEvent]:
        """The room's messages (of `sender`), oldest first, without edits and what was redacted."""
        return [
            event
            for event in await self.messages(room)
            if event["type"] == "m.room.message"
            and event["content"]
            and sender in (None, event["sender"])
            and not replaces(event)
        ]

    async def wait_for(
        self, room: str, condition: Callable[[list[RoomEvent]], T | None], timeout: float = PATIENCE
    ) -> T:
        """Wait until `condition(messages(room))` is something true, and return that. Raises `TimeoutError`."""
        since: str | None = None
        events: list[RoomEvent] = []
        try:
            async with asyncio.timeout(timeout):
                while True:
                    _, since = await self.sync(room, since)
                    events = await self.messages(room)
                    if found := condition(events):
                        return found
        except TimeoutError as error:
            last = "\n".join(f"{e['sender']} {e['type']} {e['content']}"[:300] for e in events[-10:])
            raise TimeoutError(f"it did not happen within {timeout:g} s; the room's last events:\n{last}") from error

    async def wait_for_reply(self, room: str, after: str, sender: str, timeout: float = PATIENCE) -> RoomEvent:
        """The first message of `sender` in the room after the event `after`; edits and redacted ones don't count."""

        def reply(events: list[RoomEvent]) -> RoomEvent | None:
            ids = [event["event_id"] for event in events]
            later = events[ids.index(after) + 1 :] if after in ids else []
            return next((event for event in later if _is_message_of(event, sender)), None)

        return await self.wait_for(room, reply, timeout)

    async def wait_for_replies_to(
        self, room: str, event_id: str, sender: str, count: int = 1, timeout: float = PATIENCE
    ) -> list[RoomEvent]:
        """The messages of `sender` that name `event_id` in `m.in_reply_to`, once there are `count` of them."""

        def replies(events: list[RoomEvent]) -> list[RoomEvent] | None:
            found = [event for event in replies_to(events, event_id) if _is_message_of(event, sender)]
            return found if len(found) >= count else None

        return await self.wait_for(room, replies, timeout)

    async def wait_for_membership(
        self, room: str, user_id: str, membership: str = "join", timeout: float = PATIENCE
    ) -> None:
        """Wait until `user_id` is in the room (or left it: "leave"), as its members see it."""

        def newest(events: list[RoomEvent]) -> bool:
            changes = [e for e in events if e["type"] == "m.room.member" and e["state_key"] == user_id]
            return bool(changes) and changes[-1]["content"]["membership"] == membership

        await self.wait_for(room, newest, timeout)

    async def wait_for_typing(self, room: str, user_id: str, typing: bool = True, timeout: float = PATIENCE) -> None:
        """Wait until `user_id` is seen typing in the room, or is not (any more)."""
        since: str | None = None
        typists: list[str] = []
        async with asyncio.timeout(timeout):
            while True:
                update, since = await self.sync(room, since)
                for notice in update.get("ephemeral", {}).get("events", ()):
                    if notice["type"] == "m.typing":
                        typists = notice["content"]["user_ids"]
                if (user_id in typists) == typing:
                    return

    async def wait_for_invite(self, room: str, timeout: float = PATIENCE) -> None:
        """Wait until this person is invited to the room."""
        query: dict[str, str | int] = {}
        async with asyncio.timeout(timeout):
            while True:
                answer = await self.request("GET", "sync", timeout=_long_poll(query), **query)
                if room in answer.get("rooms", {}).get("invite", {}):
                    return
                query["since"] = answer["next_batch"]


def replaces(event: RoomEvent) -> str | None:
    """The id of the event that this one edits, if it does."""
    relation = event["content"].get("m.relates_to", {})
    return str(relation["event_id"]) if relation.get("rel_type") == "m.replace" else None


def replies_to(events: Sequence[RoomEvent], event_id: str) -> list[RoomEvent]:
    """Those of `events` that name `event_id` in `m.in_reply_to`."""
    return [
        event
        for event in events
        if event["content"].get("m.relates_to", {}).get("m.in_reply_to", {}).get("event_id") == event_id
    ]


def _is_message_of(event: RoomEvent, sender: str) -> bool:
    return (
        event["type"] in ("m.room.message", "m.room.encrypted")
        and event["sender"] == sender
        and bool(event["content"])
        and not replaces(event)
    )


def _long_poll(query: dict[str, str | int]) -> int:
    """Milliseconds that the homeserver may hold a /sync back; the first one is to answer at once."""
    return int(LONG_POLL_S * 1000) if "since" in query else 0
