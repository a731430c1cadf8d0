"""Fixtures for all tests: one real homeserver for the whole run, people on it, and a scripted language model."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
import structlog
from hypothesis import settings

from bot.demo.homeserver import Homeserver
from tests.servers.model import ScriptedModel
from tests.servers.synapse import Person

# Its assertions are a judgement, too: they are to say what they saw.
pytest.register_assert_rewrite("tests.system.outside")

# No test is by the clock: a busy machine is no failure.
settings.register_profile("musher", deadline=None)
settings.load_profile("musher")

PersonMaker = Callable[[str], Awaitable[Person]]

UNTRACED = (
    "tests/system/",
    "tests/soak/",
    "tests/crdt/test_state_machine.py",
    "tests/crdt/test_every_write.py",
    "tests/bot/matrix/test_split.py",
    "tests/test_architecture.py",
)
"""What these run of ours in their own process is covered elsewhere; the tracer would make them take many times as long.
So it is with properties, which repeat a hundred times what examples show once."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        is_property = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        if is_property or any(part in item.path.as_posix() for part in UNTRACED):
            item.add_marker("no_cover")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def synapse(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Homeserver]:
    """A Synapse that all tests share. A test that stops or kills one starts its own instead."""
    async with Homeserver.start(tmp_path_factory.mktemp("synapse"), in_memory=True) as homeserver:
        yield homeserver


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Makes a user name out of a readable one that no other test has: `unique("alice")` is like `alice-3f9c01d2`."""
    return lambda name: f"{name}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
async def make_person(synapse: Homeserver, unique: Callable[[str], str]) -> AsyncIterator[PersonMaker]:
    """Makes people who are in no room yet and whom no other test knows: `alice = await make_person("alice")`."""
    async with AsyncExitStack() as people:

        async def make(name: str) -> Person:
            return await people.enter_async_context(Person.on(synapse, unique(name)))

        yield make


@pytest.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    """A scripted model that serves `test-model` to this test alone."""
    async with ScriptedModel() as scripted:
        yield scripted


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what a test configured: the log lines of the next are captured where structlog is as it comes."""
    yield
    structlog.reset_defaults()
