"""A person whose client is nio's own, with its usual encryption: none of the bot's own code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from nio import (  # type: ignore[import-untyped]
    AsyncClient,
    AsyncClientConfig,
    LoginResponse,
    MegolmEvent,
    RoomMessage,
    RoomSendResponse,
    SyncResponse,
)

from bot.demo.homeserver import Homeserver
from tests.servers.synapse import PASSWORD

ALGORITHM: dict[str, Any] = {"algorithm": "m.megolm.v1.aes-sha2"}
ENCRYPTED = {"type": "m.room.encryption", "state_key": "", "content": ALGORITHM}


class NioPerson:
    """Talks in encrypted rooms, trusting every device."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.heard: list[RoomMessage] = []
        self.unread: list[MegolmEvent] = []
        self.to_device: list[Any] = []
        self._peeks = 0

    @property
    def user_id(self) -> str:
        return str(self.client.user_id)

    @classmethod
    @asynccontextmanager
    async def on(cls, homeserver: Homeserver, name: str, folder: Path) -> AsyncIterator[Self]:
        """Register the user unless they exist, and log them in on a new device."""
        user_id = await homeserver.register(name, PASSWORD)
        folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - an instant, in a test
        config = AsyncClientConfig(encryption_enabled=True, store_sync_tokens=False, pickle_key="a person's own")
        client = AsyncClient(homeserver.url, user_id, store_path=str(folder), config=config)
        assert isinstance(await client.login(PASSWORD), LoginResponse)
        person = cls(client)
        client.add_event_callback(person._hear, RoomMessage)
        client.add_event_callback(person._miss, MegolmEvent)
        client.add_to_device_callback(person._told, None)
        await person.sync()
        try:
            yield person
        finally:
            await client.close()

    async def _hear(self, _room: object, event: RoomMessage) -> None:
        if event.sender != self.user_id:
            self.heard.append(event)

    async def _miss(self, _room: object, event: MegolmEvent) -> None:
        self.unread.append(event)

    async def _told(self, event: object) -> None:
        self.to_device.append(event)

    async def sync(self, timeout_ms: int = 0) -> None:
        """Take in what is new, and do what a client does about keys."""
        answer = await self.client.sync(timeout=timeout_ms, full_state=self.client.next_batch == "")
        assert isinstance(answer, SyncResponse), answer
        if self.client.should_upload_keys:
            await self.client.keys_upload()
        if self.client.should_query_keys:
            await self.client.keys_query()
        if self.client.should_claim_keys:
            await self.client.keys_claim(self.client.get_users_for_key_claiming())
        await self.client.send_to_device_messages()

    async def peek_to_device(self) -> list[dict[str, Any]]:
        """What waits for this device, left where it is."""
        self._peeks += 1  # the same question would get the same answer for two minutes
        answer = await self.client.send(
            "GET",
            f"/_matrix/client/v3/sync?timeout={self._peeks}&since={self.client.next_batch}",
            headers={"Authorization": f"Bearer {self.client.access_token}"},
        )
        events: list[dict[str, Any]] = (await answer.json()).get("to_device", {}).get("events", [])
        return events

    async def history(self, room: str) -> list[dict[str, Any]]:
        """All events of the room as the homeserver has them, newest first."""
        events: list[dict[str, Any]] = []
        place = ""
        while True:
            answer = await self.client.send(
                "GET",
                f"/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=1000{place}",
                headers={"Authorization": f"Bearer {self.client.access_token}"},
            )
            page = await answer.json()
            events += page["chunk"]
            if "end" not in page:
                return events
            place = f"&from={page['end']}"

    async def create_room(self, *invite: str, encrypted: bool = True, **options: Any) -> str:
        state = [ENCRYPTED] if encrypted else []
        answer = await self.client.room_create(invite=list(invite), initial_state=state, **options)
        await self.until(lambda: answer.room_id in self.client.rooms)
        return str(answer.room_id)

    async def say(self, room: str, text: str) -> str:
        content = {"msgtype": "m.text", "body": text}
        answer = await self.client.room_send(room, "m.room.message", content, ignore_unverified_devices=True)
        assert isinstance(answer, RoomSendResponse), answer
        return str(answer.event_id)

    async def until(self, happened: Callable[[], Any], timeout: float = 20.0) -> Any:
        """Sync until `happened()` is something true, and return that."""
        async with asyncio.timeout(timeout):
            while not (found := happened()):
                await self.sync(500)
            return found

    async def until_member(self, room: str, user_id: str) -> None:
        """Wait until that user has joined."""
        await self.until(
            lambda: user_id in self.client.rooms[room].users and user_id not in self.client.rooms[room].invited_users
        )

    async def until_heard(self, body: str) -> RoomMessage:
        """Wait for somebody to say just that."""
        return await self.until(lambda: next((each for each in self.heard if each.body == body), None))
