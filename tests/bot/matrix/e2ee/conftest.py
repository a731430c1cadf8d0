"""Bots that can encrypt, and the people who talk with them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from bot.demo.homeserver import Homeserver
from bot.matrix import Credentials, EncryptionSettings, Identity, MatrixClient, RoomMessage, SyncBatch
from tests.bot.matrix.e2ee.nio_person import NioPerson
from tests.servers.synapse import PASSWORD

PersonMaker = Callable[[str], Awaitable[NioPerson]]


@dataclass
class KeptSettings:
    """The database's settings, in memory."""

    values: dict[str, str] = field(default_factory=dict)

    async def read_setting(self, name: str) -> str | None:
        return self.values.get(name)

    async def write_settings(self, values: Mapping[str, str]) -> None:
        self.values |= values


@dataclass
class Bot:
    """A bot with its files and settings, which outlive any number of starts."""

    credentials: Credentials
    options: EncryptionSettings
    settings: KeptSettings = field(default_factory=KeptSettings)
    identity: Identity | None = None
    since: str | None = None
    heard: list[RoomMessage] = field(default_factory=list)
    batches: list[SyncBatch] = field(default_factory=list)
    _client: MatrixClient | None = None
    sent: int = 0

    @property
    def client(self) -> MatrixClient:
        assert self._client is not None
        return self._client

    @property
    def user_id(self) -> str:
        return self.credentials.user_id

    @property
    def encryption(self) -> Any:
        return self.client._encryption

    def key_files(self) -> list[Path]:
        beside = self.options.beside
        return sorted(beside.parent.glob(f"{beside.name}.keys-*"))

    async def start(self) -> Identity:
        """Connect as the service does at its start."""
        await self.stop()
        self._client = MatrixClient(self.credentials, self.options, self.settings)
        self.identity = await self._client.connect(self.identity)
        await self._client.retire_lost_device()
        return self.identity

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def sync(self, timeout_ms: int = 0) -> SyncBatch:
        """One step, admitted; invitations are accepted."""
        batch = await self.client.sync(self.since, timeout_ms)
        self.since = batch.next_batch
        self.heard += batch.messages
        self.batches.append(batch)
        for invite in batch.invites:
            await self.client.join(invite.room_id)
        return batch

    async def until_heard(self, body: str) -> RoomMessage:
        for _ in range(60):
            found = next((each for each in self.heard if each.body == body), None)
            if found is not None:
                return found
            await self.sync(500)
        raise AssertionError(f"{body!r} was not heard")

    async def say(self, room: str, text: str, **more: object) -> str:
        self.sent += 1
        content = {"msgtype": "m.text", "body": text} | more
        return await self.client.send(room, "m.room.message", content, f"t{self.sent}")


@pytest.fixture
async def make_bot(
    synapse: Homeserver, unique: Callable[[str], str], tmp_path: Path
) -> AsyncIterator[Callable[..., Awaitable[Bot]]]:
    """Makes bots that are connected and have synced once."""
    async with AsyncExitStack() as stack:

        async def make(**options: Any) -> Bot:
            name = unique("musher")
            credentials = Credentials(synapse.url, await synapse.register(name, PASSWORD), PASSWORD)
            settings = EncryptionSettings(beside=tmp_path / f"{name}.db", password=PASSWORD)
            bot = Bot(credentials, replace(settings, **options))
            stack.push_async_callback(bot.stop)
            await bot.start()
            await bot.sync()
            return bot

        yield make


@pytest.fixture
async def bot(make_bot: Callable[..., Awaitable[Bot]]) -> Bot:
    return await make_bot()


@pytest.fixture
async def make_nio(synapse: Homeserver, unique: Callable[[str], str], tmp_path: Path) -> AsyncIterator[PersonMaker]:
    """Makes people with nio as their client."""
    async with AsyncExitStack() as people:

        async def make(name: str) -> NioPerson:
            name = unique(name)
            return await people.enter_async_context(NioPerson.on(synapse, name, tmp_path / name))

        yield make


@pytest.fixture
async def alice(make_nio: PersonMaker) -> NioPerson:
    return await make_nio("alice")


@pytest.fixture
async def room(bot: Bot, alice: NioPerson) -> str:
    """An encrypted room of Alice's in which the bot is."""
    return await enter(bot, alice)


async def enter(bot: Bot, alice: NioPerson, **options: Any) -> str:
    room = await alice.create_room(bot.user_id, **options)
    while not bot.batches or room not in bot.batches[-1].joined:
        await bot.sync(500)
    await alice.until_member(room, bot.user_id)
    return room
