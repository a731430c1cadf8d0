"""A room of many: everybody gets the key, in few requests."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
import vodozemac
from aiohttp import web

from bot.matrix.client import MatrixClient
from bot.matrix.e2ee import EncryptionSettings
from bot.matrix.e2ee.devices import DEVICES_A_REQUEST
from tests.bot.matrix.e2ee.conftest import KeptSettings
from tests.bot.matrix.fake import FakeHomeserver

PEOPLE: Final = 120
ROOM: Final = "!large:fake"


class Device:
    """Somebody's only device, as a homeserver tells of it."""

    def __init__(self, number: int) -> None:
        self.user, self.id = f"@user{number}:fake", f"DEV{number}"
        self._account = vodozemac.Account()
        self._account.generate_one_time_keys(1)

    def _signed(self, value: dict[str, Any]) -> dict[str, Any]:
        canonical = json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
        signature = self._account.sign(canonical).to_base64()
        return value | {"signatures": {self.user: {f"ed25519:{self.id}": signature}}}

    def keys(self) -> dict[str, Any]:
        account = self._account
        names = {"ed25519": account.ed25519_key.to_base64(), "curve25519": account.curve25519_key.to_base64()}
        return self._signed(
            {
                "user_id": self.user,
                "device_id": self.id,
                "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
                "keys": {f"{name}:{self.id}": key for name, key in names.items()},
            }
        )

    def one_time_key(self) -> dict[str, Any]:
        ((name, key),) = self._account.one_time_keys.items()
        return {f"signed_curve25519:{name}": self._signed({"key": key.to_base64()})}


class LargeRoom(FakeHomeserver):
    """A homeserver with one encrypted room of many. Notes who was sent the room's key."""

    def __init__(self) -> None:
        super().__init__()
        self.devices = {device.user: device for device in (Device(number) for number in range(PEOPLE))}
        self.told: Counter[str] = Counter()
        state = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
        room = {"state": {"events": [state]}, "timeline": {"events": []}}
        self.routes |= {
            "/members": lambda _: {"chunk": [_member(user) for user in self.devices]},
            "/keys/query": self._query,
            "/keys/claim": self._claim,
            "/sync": lambda _: {"next_batch": "s1", "rooms": {"join": {ROOM: room}}},
        }

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if "/sendToDevice/" in request.path:
            self.told.update((await request.json())["messages"].keys())
        if "/sendToDevice/" in request.path or "/send/" in request.path:
            self.requests.append(request)
            return web.json_response({"event_id": "$sent"})
        return await super()._answer(request)

    async def _query(self, request: web.Request) -> dict[str, Any]:
        users = [self.devices.get(user) for user in (await request.json())["device_keys"]]
        return {"device_keys": {each.user: {each.id: each.keys()} for each in users if each is not None}}

    async def _claim(self, request: web.Request) -> dict[str, Any]:
        wanted = (await request.json())["one_time_keys"]
        given = {user: {name: self.devices[user].one_time_key() for name in names} for user, names in wanted.items()}
        return {"one_time_keys": given}


def _member(user: str) -> dict[str, Any]:
    return {"type": "m.room.member", "state_key": user, "sender": user, "content": {"membership": "join"}}


@pytest.fixture
async def fake() -> AsyncIterator[LargeRoom]:
    async with LargeRoom() as server:
        yield server


async def test_everybody_in_a_large_room_gets_the_key_once_in_few_requests(fake: LargeRoom, tmp_path: Path) -> None:
    client = MatrixClient(fake.credentials, EncryptionSettings(tmp_path / "musher.db"), KeptSettings())
    try:
        await client.connect()
        await client.sync("s0", 0)
        before = len(fake.requests)
        for number in range(2):
            await client.send(ROOM, "m.room.message", {"msgtype": "m.text", "body": "hello"}, f"t{number}")
    finally:
        await client.close()
    assert fake.told == Counter(fake.devices.keys())
    parts = -(-PEOPLE // DEVICES_A_REQUEST)
    assert len(fake.requests) - before <= 2 * parts + 5
