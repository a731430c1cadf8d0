"""Fixtures for the tests of the whole service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import pytest

from bot.demo.homeserver import Homeserver
from tests.servers.model import ScriptedModel
from tests.servers.synapse import PASSWORD, Person
from tests.system.service import MusherProcess, Sections


class MusherMaker(Protocol):
    """Makes a Musher that is not started yet; `sections` go over its usual configuration."""

    async def __call__(self, sections: Sections = ..., *, homeserver: str = ...) -> MusherProcess: ...


@pytest.fixture
async def make_musher(
    synapse: Homeserver, model: ScriptedModel, unique: Callable[[str], str], tmp_path: Path
) -> AsyncIterator[MusherMaker]:
    """Makes Mushers, each with an account and a folder of its own, that end with the test."""
    async with AsyncExitStack() as stack:

        async def make(sections: Sections | None = None, *, homeserver: str = synapse.url) -> MusherProcess:
            name = unique("musher")
            user_id = await synapse.register(name, PASSWORD)
            musher = MusherProcess(tmp_path / name, homeserver, user_id, model.url, sections or {})
            stack.push_async_callback(musher.end)
            return musher

        yield make


@pytest.fixture
async def musher(make_musher: MusherMaker) -> MusherProcess:
    """A service that is ready, with the usual configuration."""
    made = await make_musher()
    await made.start()
    return made


@pytest.fixture
async def alice(make_person: Callable[[str], Awaitable[Person]]) -> Person:
    return await make_person("alice")


@pytest.fixture
async def bob(make_person: Callable[[str], Awaitable[Person]]) -> Person:
    return await make_person("bob")


@pytest.fixture
async def room(musher: MusherProcess, alice: Person) -> str:
    """A room of Alice's in which the service is."""
    return await enter(alice, musher)


async def enter(person: Person, musher: MusherProcess, **options: object) -> str:
    """Make a room and wait until the service, which is running, has joined it."""
    room = await person.create_room(invite=[musher.user_id], **options)
    await person.wait_for_membership(room, musher.user_id)
    return room
