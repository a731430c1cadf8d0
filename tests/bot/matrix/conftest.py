"""Bots and faulty homeservers for the tests of the Matrix side."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from bot.demo.homeserver import Homeserver
from bot.matrix.client import MatrixClient
from bot.matrix.model import Credentials, Identity
from tests.bot.matrix.fake import FakeHomeserver
from tests.servers.synapse import PASSWORD

BotMaker = Callable[[], Awaitable[MatrixClient]]
Opener = Callable[[Credentials], MatrixClient]


@pytest.fixture
async def open_client() -> AsyncIterator[Opener]:
    """Makes clients that are closed when the test ends."""
    async with AsyncExitStack() as stack:

        def make(credentials: Credentials) -> MatrixClient:
            client = MatrixClient(credentials)
            stack.push_async_callback(client.close)
            return client

        yield make


@pytest.fixture
async def account(synapse: Homeserver, unique: Callable[[str], str]) -> Credentials:
    """A new account of a bot on the real homeserver, with no device yet."""
    return Credentials(synapse.url, await synapse.register(unique("musher"), PASSWORD), PASSWORD)


@pytest.fixture
async def identity(account: Credentials, open_client: Opener) -> Identity:
    """A login of that account."""
    return await open_client(account).connect()


@pytest.fixture
async def bot(account: Credentials, identity: Identity, open_client: Opener) -> MatrixClient:
    """That bot, connected; it has not synced yet."""
    client = open_client(account)
    await client.connect(identity)
    return client


@pytest.fixture
async def fake() -> AsyncIterator[FakeHomeserver]:
    async with FakeHomeserver() as server:
        yield server


@pytest.fixture
async def faked_bot(fake: FakeHomeserver, open_client: Opener) -> MatrixClient:
    """A bot connected to the fake homeserver."""
    client = open_client(fake.credentials)
    await client.connect()
    return client
