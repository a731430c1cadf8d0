"""A room of many: everybody gets the key, in few requests."""

from __future__ import annotations

import json
import threading
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
from bot.matrix.errors import Unreachable
from tests.bot.matrix.e2ee.conftest import KeptSettings
from tests.bot.matrix.fake import FakeHomeserver, error

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
        self.rules: dict[str, Any] = {"algorithm": "m.megolm.v1.aes-sha2"}
        self.fails = False
        """Whether every third request to tell devices something fails."""
        self._tellings = 0
        state = {"type": "m.room.encryption", "state_key": "", "content": self.rules}
        room = {"state": {"events": [state]}, "timeline": {"events": []}}
        self.routes |= {
            "/members": lambda _: {"chunk": [_member(user) for user in self.devices]},
            "/keys/query": self._query,
            "/keys/claim": self._claim,
            "/sync": lambda _: {"next_batch": "s1", "rooms": {"join": {ROOM: room}}},
        }

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if "/sendToDevice/" in request.path:
            self._tellings += 1
            if self.fails and self._tellings % 3 == 0:
                return error(502, "M_UNKNOWN")
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


@pytest.fixture
async def client(fake: LargeRoom, tmp_path: Path) -> AsyncIterator[MatrixClient]:
    client = MatrixClient(fake.credentials, EncryptionSettings(tmp_path / "musher.db"), KeptSettings())
    try:
        await client.connect()
        yield client
    finally:
        await client.close()


async def say(client: MatrixClient, txn_id: str) -> None:
    await client.send(ROOM, "m.room.message", {"msgtype": "m.text", "body": "hello"}, txn_id)


async def test_everybody_in_a_large_room_gets_the_key_once_in_few_requests(
    fake: LargeRoom, client: MatrixClient
) -> None:
    await client.sync("s0", 0)
    before = len(fake.requests)
    for number in range(2):
        await say(client, f"t{number}")
    assert fake.told == Counter(fake.devices.keys())
    parts = -(-PEOPLE // DEVICES_A_REQUEST)
    assert len(fake.requests) - before <= 2 * parts + 5


async def test_a_key_goes_on_to_those_that_lack_it_where_a_request_failed(
    fake: LargeRoom, client: MatrixClient
) -> None:
    await client.sync("s0", 0)
    fake.fails = True
    with pytest.raises(Unreachable):
        await say(client, "t1")
    await say(client, "t1")
    assert fake.told == Counter(fake.devices.keys())


async def test_who_has_got_a_key_is_forgotten_with_the_key(fake: LargeRoom, client: MatrixClient) -> None:
    fake.rules["rotation_period_msgs"] = 1
    await client.sync("s0", 0)
    for number in range(3):
        await say(client, f"t{number}")
    assert set(fake.told.values()) == {3}
    assert client._encryption is not None
    assert sum(len(given) for _, given in client._encryption._sharing._given.values()) == PEOPLE


async def test_nothing_is_sent_that_nobody_could_read_since_the_members_are_not_known(
    fake: LargeRoom, client: MatrixClient
) -> None:
    await client.sync("s0", 0)
    members = fake.routes["/members"]
    fake.routes["/members"] = lambda _: {}
    with pytest.raises(Unreachable):
        await say(client, "t1")
    fake.routes["/members"] = members
    await say(client, "t1")
    assert fake.told == Counter(fake.devices.keys())


async def test_the_devices_are_looked_at_by_the_thread_alone_that_changes_them(
    fake: LargeRoom, client: MatrixClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a room's send breaks while another room's learns of the same person's devices."""
    await client.sync("s0", 0)
    assert client._encryption is not None
    machine = client._encryption._machine
    looked: set[str] = set()

    def watched(look: Any) -> Any:
        def watch(*arguments: Any) -> Any:
            looked.add(threading.current_thread().name)
            return look(*arguments)

        return watch

    monkeypatch.setattr(machine, "active_devices", watched(machine.active_devices))
    monkeypatch.setattr(machine.olm.session_store, "get", watched(machine.olm.session_store.get))
    await say(client, "t1")
    assert fake.told == Counter(fake.devices.keys())
    assert looked == {"keys_0"}
