"""What a homeserver forgets is asked again, and one that is only slow is not disturbed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import cast

import pytest
from aiohttp import web

from bot.matrix.client import MatrixClient
from bot.matrix.e2ee import devices
from bot.matrix.e2ee.devices import Devices
from bot.matrix.e2ee.machine import Machine
from bot.matrix.errors import Unreachable
from bot.matrix.model import Credentials
from bot.matrix.second_asks import SHARE_S, Patience, SecondAsks
from bot.matrix.wire import Wire
from tests.bot.edge import until
from tests.bot.matrix.fake import IDENTITY, USER, FakeHomeserver, error

AT_ONCE = Patience(0.01, 0.01)
WITHIN_S = 10.0


class Forgetful:
    """Answers the requests whose numbers, from 0 on, are in `answers`; the others when `over` is set."""

    def __init__(self, *answers: int) -> None:
        self.answers = set(answers)
        self.over = asyncio.Event()
        self.asked: list[web.Request] = []

    async def __call__(self, request: web.Request) -> web.Response:
        number = len(self.asked)
        self.asked.append(request)
        if number not in self.answers:
            await self.over.wait()
        return web.json_response({"number": number})


@pytest.fixture
def silences() -> list[str]:
    return []


@pytest.fixture
async def wire(fake: FakeHomeserver, silences: list[str]) -> AsyncIterator[Wire]:
    connection = Wire(fake.url, USER, SecondAsks(lambda: silences.append("silent")))
    connection.adopt(IDENTITY)
    yield connection
    await connection.close()


@pytest.fixture
async def forgets(fake: FakeHomeserver) -> AsyncIterator[Callable[..., Forgetful]]:
    """Makes addresses that answer some requests only."""
    async with AsyncExitStack() as stack:

        def make(end: str, *answers: int) -> Forgetful:
            fake.routes[end] = route = Forgetful(*answers)
            stack.callback(route.over.set)
            return route

        yield make


async def test_what_was_forgotten_is_asked_again_and_the_silence_told_once(
    wire: Wire, forgets: Callable[..., Forgetful], silences: list[str]
) -> None:
    there = forgets("/there", 2)
    async with asyncio.timeout(WITHIN_S):
        assert await wire.get("there", patience=AT_ONCE, query={"timeout": "9"}, again={"timeout": "0"}) == {
            "number": 2
        }
    assert [request.query["timeout"] for request in there.asked] == ["9", "0", "0"]
    assert silences == ["silent"]


async def test_a_slow_server_answers_the_first_request(wire: Wire, forgets: Callable[..., Forgetful]) -> None:
    there = forgets("/there")
    asking = asyncio.create_task(wire.get("there", patience=AT_ONCE))
    await until(lambda: len(there.asked) == 2, WITHIN_S)
    there.over.set()
    assert await asking == {"number": 0}


async def test_what_the_server_says_to_a_second_request_counts_also_when_it_is_an_error(
    wire: Wire, fake: FakeHomeserver, forgets: Callable[..., Forgetful]
) -> None:
    there = forgets("/there")
    fake.routes["/there"] = lambda request: there(request) if not there.asked else error(502, "M_UNKNOWN")
    with pytest.raises(Unreachable, match="502"):
        await wire.get("there", patience=AT_ONCE)


async def test_a_server_that_speaks_again_is_asked_again_for_all_that_it_was_asked_before(
    wire: Wire, forgets: Callable[..., Forgetful]
) -> None:
    sync, send = forgets("/sync", 1), forgets("/send", 1)
    sending = asyncio.create_task(wire.post("send", body={}))
    await until(lambda: send.asked, WITHIN_S)
    async with asyncio.timeout(WITHIN_S):
        await wire.get("sync", patience=AT_ONCE)
        assert await sending == {"number": 1}
    assert len(sync.asked) == 2


@pytest.mark.parametrize(
    ("users", "asked"),
    [([USER, "@alice:fake"], 2), ([USER, "@alice:elsewhere"], 1), ([f"@{n}:fake" for n in range(50)], 1)],
)
async def test_a_question_about_keys_that_is_forgotten_is_soon_asked_again_unless_it_is_long_work(
    wire: Wire,
    forgets: Callable[..., Forgetful],
    monkeypatch: pytest.MonkeyPatch,
    users: list[str],
    asked: int,
) -> None:
    """The sync waits for it: nobody else would notice."""
    monkeypatch.setattr(devices, "USUAL", AT_ONCE)
    query = forgets("/keys/query", 1)
    asking = asyncio.create_task(Devices(wire, cast(Machine, SimpleNamespace(user_id=USER))).query(users))
    await until(lambda: len(query.asked) == asked, WITHIN_S)
    query.over.set()
    assert await asking == {"number": asked - 1}


async def test_a_login_is_made_only_once_however_long_it_takes(
    fake: FakeHomeserver, forgets: Callable[..., Forgetful]
) -> None:
    login, sync = forgets("/login"), forgets("/sync", 1)
    client = MatrixClient(Credentials(fake.url, USER, "secret"), on_silence=lambda: None)
    try:
        connecting = asyncio.create_task(client.connect())
        await until(lambda: login.asked, WITHIN_S)
        async with asyncio.timeout(WITHIN_S):
            await client._wire.get("sync", patience=AT_ONCE)
        assert len(sync.asked) == 2
        login.over.set()
        with pytest.raises(Unreachable, match="a login without"):
            await connecting
        assert len(login.asked) == 1
    finally:
        await client.close()


async def test_a_start_does_not_hang_on_a_question_that_was_forgotten(fake: FakeHomeserver) -> None:
    over = asyncio.Event()
    asked: list[web.Request] = []

    async def versions(request: web.Request) -> web.Response:
        asked.append(request)
        if len(asked) == 1:
            await over.wait()
        return web.json_response({"versions": ["v1.11"]})

    fake.routes["/versions"] = versions
    client = MatrixClient(Credentials(fake.url, USER, "secret"), on_silence=lambda: None)
    try:
        async with asyncio.timeout(WITHIN_S):
            assert await client.check_homeserver() == ["v1.11"]
    finally:
        over.set()
        await client.close()


async def test_the_second_requests_of_all_together_are_few(wire: Wire, forgets: Callable[..., Forgetful]) -> None:
    there = forgets("/there")
    began = asyncio.get_running_loop().time()
    asking = [asyncio.create_task(wire.get("there", patience=AT_ONCE)) for _ in range(20)]
    await until(lambda: len(there.asked) == 22, WITHIN_S)
    assert asyncio.get_running_loop().time() - began > SHARE_S
    there.over.set()
    await asyncio.gather(*asking)


async def test_a_request_that_is_given_up_leaves_none_behind(wire: Wire, forgets: Callable[..., Forgetful]) -> None:
    there = forgets("/there")
    asking = asyncio.create_task(wire.get("there", patience=AT_ONCE))
    await until(lambda: len(there.asked) == 2, WITHIN_S)
    asking.cancel()
    await until(lambda: all(request.transport is None for request in there.asked), WITHIN_S)
    assert asking.cancelled()
