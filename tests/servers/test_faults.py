"""The fault proxy, as a client behind it sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.servers.fault_proxy import FaultProxy
from tests.servers.faults import (
    DOWN,
    GARBAGE,
    HALF_A_BODY,
    HANG,
    LOST_ANSWER,
    RESET,
    SENDS,
    SLOW,
    to,
    too_many,
)
from tests.servers.model import ScriptedModel

CHAT = {"model": "test-model", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
async def proxy(model: ScriptedModel) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(model.url) as between:
        yield between


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def ask(http: aiohttp.ClientSession, proxy: FaultProxy) -> str:
    async with http.post(f"{proxy.url}/chat/completions", json=CHAT) as response:
        response.raise_for_status()
        return str((await response.json())["choices"][0]["message"]["content"])


async def test_what_meets_no_fault_is_passed_on_both_ways(
    proxy: FaultProxy, model: ScriptedModel, http: aiohttp.ClientSession
) -> None:
    assert await ask(http, proxy) == "reply 1"
    assert model.requests[0].messages == CHAT["messages"]
    async with http.get(f"{proxy.url}/models/nobody") as response:
        assert response.status == 404
    assert [(call.method, call.fault) for call in proxy.calls] == [("POST", None), ("GET", None)]


async def test_a_server_that_is_down_refuses_and_comes_back_at_its_port(
    proxy: FaultProxy, http: aiohttp.ClientSession
) -> None:
    url = proxy.url
    async with proxy.during(DOWN):
        with pytest.raises(aiohttp.ClientConnectorError):
            await ask(http, proxy)
    assert proxy.url == url
    assert await ask(http, proxy) == "reply 1"


async def test_a_lost_answer_is_one_to_something_that_was_done(
    proxy: FaultProxy, model: ScriptedModel, http: aiohttp.ClientSession
) -> None:
    await proxy.begin(LOST_ANSWER, times=1)
    with pytest.raises(aiohttp.ClientConnectionError):
        await ask(http, proxy)
    assert len(model.requests) == 1
    assert await ask(http, proxy) == "reply 2"
    await proxy.begin(RESET, times=1)
    with pytest.raises(aiohttp.ClientConnectionError):
        await ask(http, proxy)
    assert len(model.requests) == 2


async def test_what_hangs_goes_on_when_the_fault_ends(
    proxy: FaultProxy, model: ScriptedModel, http: aiohttp.ClientSession
) -> None:
    gate = model.hang()
    before = asyncio.create_task(ask(http, proxy))
    await model.wait_for_requests(1)
    async with proxy.during(HANG):
        gate.set()
        during = asyncio.create_task(ask(http, proxy))
        await proxy.wait_for_calls(to("chat"), 2)
        assert not before.done()
        assert len(model.requests) == 1
    assert [await before, await during] == ["reply 1", "reply 2"]


async def test_answers_in_the_servers_place_and_the_rate_of_asking(
    proxy: FaultProxy, model: ScriptedModel, http: aiohttp.ClientSession
) -> None:
    async with proxy.during(too_many(7, in_header=True)) as rule:
        for _ in range(2):
            async with http.get(proxy.url) as response:
                assert (response.status, response.headers["Retry-After"]) == (429, "7")
    assert rule.ended_at is not None
    assert proxy.rate(rule) == pytest.approx(2 / (rule.ended_at - rule.began))
    async with proxy.during(GARBAGE), http.get(proxy.url) as response:
        with pytest.raises(ValueError, match=r"decode|Expecting value"):
            await response.json()
    async with proxy.during(HALF_A_BODY), http.get(proxy.url) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert len(proxy.met("garbage")) == 1
    assert model.requests == []


async def test_a_fault_meets_only_whom_it_is_for(proxy: FaultProxy, http: aiohttp.ClientSession) -> None:
    async with proxy.during(RESET, only=SENDS), proxy.during(SLOW, only=to("chat")):
        began = asyncio.get_running_loop().time()
        assert await ask(http, proxy) == "reply 1"
        assert asyncio.get_running_loop().time() - began >= SLOW.seconds
