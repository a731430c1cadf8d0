"""A proxy on loopback between Musher and a real server, which fails as it is told.

A fault is begun and ended by the test, for all requests or for some, for a time or for a number of requests. Every
request that arrives is kept with its time, so that a test can tell how fast the client asks while the fault lasts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final, Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from tests.servers.faults import SWALLOW, Call, Down, Fault, Hang, Match, Swallow, every

PATIENCE: Final = 30.0
"""Seconds to wait for requests that should arrive, before the test fails."""

_HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host", "date"})


@dataclass(eq=False)
class Rule:
    """A fault that was begun: whom it meets, and how often still (`None`: until it is ended)."""

    fault: Fault
    only: Match
    left: int | None
    began: float
    ended_at: float | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def lasts(self, seconds: float) -> None:
        """Wait until the fault has been on for so long, or has ended."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), self.began + seconds - _now())


class FaultProxy:
    """Passes requests on to `target` and fails them as it is told. It keeps its port when it is down."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = f"{parts.scheme}://{parts.netloc}"
        self._base_path = parts.path
        self.calls: list[Call] = []
        self._rules: list[Rule] = []
        self._under_way: set[Call] = set()
        self._forgotten: set[Call] = set()
        self._arrived = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._http: aiohttp.ClientSession | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where clients ask; the path is that of the target."""
        return f"http://127.0.0.1:{self._port}{self._base_path}"

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None)
        self._http = aiohttp.ClientSession(
            timeout=timeout, auto_decompress=False, connector=aiohttp.TCPConnector(limit=0)
        )
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        for rule in list(self._rules):
            self._finish(rule)
        await self._close()
        assert self._http is not None
        await self._http.close()

    # --- faults

    async def begin(self, fault: Fault, only: Match = every, times: int | None = None) -> Rule:
        """Begin a fault. The newest that fits a request decides."""
        rule = Rule(fault, only, times, _now())
        self._rules.append(rule)
        if isinstance(fault, Swallow) and times is None:
            self._forgotten |= {call for call in self._under_way if only(call)}
        if isinstance(fault, Down):
            await self._close()
        return rule

    async def end(self, rule: Rule) -> None:
        """End a fault; ending it twice does nothing."""
        if rule.ended_at is None:
            self._finish(rule)
        if self._runner is None and not any(isinstance(each.fault, Down) for each in self._rules):
            await self._listen()

    @asynccontextmanager
    async def during(self, fault: Fault, only: Match = every) -> AsyncIterator[Rule]:
        """Keep a fault on while the block runs."""
        rule = await self.begin(fault, only)
        try:
            yield rule
        finally:
            await self.end(rule)

    def _finish(self, rule: Rule) -> None:
        rule.ended_at = _now()
        self._rules.remove(rule)
        rule.ended.set()

    # --- what was asked

    def met(self, fault: str) -> list[Call]:
        """The requests so far that met a fault of this name."""
        return [call for call in self.calls if call.fault == fault]

    def rate(self, rule: Rule) -> float:
        """Requests a second that arrived while a fault was on."""
        until = _now() if rule.ended_at is None else rule.ended_at
        return sum(rule.began <= call.at <= until for call in self.calls) / (until - rule.began)

    async def wait_for_calls(self, only: Match, count: int = 1, within: float = PATIENCE) -> list[Call]:
        """Wait until `count` requests that match have arrived in all."""

        def found() -> list[Call]:
            return [call for call in self.calls if only(call)]

        async with asyncio.timeout(within), self._arrived:
            await self._arrived.wait_for(lambda: len(found()) >= count)
        return found()

    # --- the proxy itself

    async def _listen(self) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.05, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()
        self._port = self._runner.addresses[0][1]

    async def _close(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        call = Call(_now(), request.method, request.path)
        rule = self._rule_for(call)
        async with self._arrived:
            self.calls.append(replace(call, fault=rule.fault.name if rule else None))
            self._arrived.notify_all()
        self._under_way.add(call)
        try:
            return await self._meet(request, call, rule)
        finally:
            self._under_way.discard(call)
            self._forgotten.discard(call)

    async def _meet(self, request: web.Request, call: Call, rule: Rule | None) -> web.StreamResponse:
        body = await request.read()

        async def forward() -> web.Response:
            return await self._forward(request, body)

        if rule is not None:
            return await rule.fault.meet(request, forward, rule.ended)
        answer = await forward()
        if call in self._forgotten:
            return await SWALLOW.meet(request, forward, asyncio.Event())
        for hang in self._hanging(call):
            await hang.ended.wait()
        return answer

    def _rule_for(self, call: Call) -> Rule | None:
        for rule in reversed(self._rules):
            if rule.only(call) and rule.left != 0:
                if rule.left is not None:
                    rule.left -= 1
                return rule
        return None

    def _hanging(self, call: Call) -> Iterator[Rule]:
        """A server that hangs does not answer what it was asked before either."""
        return (
            rule for rule in list(self._rules) if isinstance(rule.fault, Hang) and rule.only(call) and rule.left is None
        )

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        assert self._http is not None
        headers = _passed_on(request.headers)
        try:
            async with self._http.request(
                request.method, self._target + request.path_qs, headers=headers, data=body, allow_redirects=False
            ) as answer:
                return web.Response(status=answer.status, headers=_passed_on(answer.headers), body=await answer.read())
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=f"the server behind the proxy: {error}")


def _now() -> float:
    return asyncio.get_running_loop().time()


def _passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}
