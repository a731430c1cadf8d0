"""A proxy on loopback between Musher and a real server, which fails the way servers, networks and proxies fail.

A fault is begun and ended by the test, for all requests or for some, for a time or for a number of requests. Every
request that arrives is kept with its time, so that a test can tell how fast the client asks while the fault lasts.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

PATIENCE: Final = 30.0
"""Seconds to wait for requests that should arrive, before the test fails."""

_HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host", "date"})


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it arrived: `at` in seconds of the loop's clock, and the name of the fault that it met."""

    at: float
    method: str
    path: str
    fault: str | None = None


Match = Callable[[Call], bool]


def every(_: Call) -> bool:
    """All requests."""
    return True


def to(pattern: str, method: str | None = None) -> Match:
    """Requests whose path matches a regular expression somewhere."""
    compiled = re.compile(pattern)
    return lambda call: compiled.search(call.path) is not None and method in (None, call.method)


SENDS: Final = to(r"/rooms/[^/]+/send/", "PUT")
SYNCS: Final = to(r"/_matrix/client/v3/sync$")

Forward = Callable[[], Awaitable[web.Response]]


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer in the server's place. With `cut_at` the connection breaks after so many bytes of the body."""

    name: str
    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_at: int | None = None

    async def meet(self, request: web.Request, forward: Forward, ended: asyncio.Event) -> web.StreamResponse:
        if self.cut_at is None:
            return web.Response(
                status=self.status, body=self.body, content_type=self.content_type, headers=self.headers
            )
        return await _cut(request, self.status, self.body, self.cut_at)


@dataclass(frozen=True, slots=True)
class Reset:
    """Break the connection: before the server has heard of the request, or (`after`) once it has done what was asked.

    With `cut_at` the true answer begins to arrive, and breaks off after so many bytes.
    """

    name: str
    after: bool = False
    cut_at: int | None = None

    async def meet(self, request: web.Request, forward: Forward, ended: asyncio.Event) -> web.StreamResponse:
        answer = await forward() if self.after else None
        if answer is not None and self.cut_at is not None:
            assert isinstance(answer.body, bytes)
            return await _cut(request, answer.status, answer.body, self.cut_at)
        return _abort(request)


@dataclass(frozen=True, slots=True)
class Down:
    """Nobody listens. What is on its way breaks off."""

    name: str = "down"

    async def meet(self, request: web.Request, forward: Forward, ended: asyncio.Event) -> web.StreamResponse:
        return _abort(request)


@dataclass(frozen=True, slots=True)
class Hang:
    """Say nothing until the fault ends; then all that was asked is done and answered."""

    name: str = "hang"

    async def meet(self, request: web.Request, forward: Forward, ended: asyncio.Event) -> web.StreamResponse:
        await ended.wait()
        return await forward()


@dataclass(frozen=True, slots=True)
class Slow:
    """Answer truly, but late by `seconds`."""

    name: str = "slow"
    seconds: float = 1.0

    async def meet(self, request: web.Request, forward: Forward, ended: asyncio.Event) -> web.StreamResponse:
        try:
            await asyncio.wait_for(asyncio.Event().wait(), self.seconds)
        except TimeoutError:
            return await forward()
        raise AssertionError("nobody sets this event")


@dataclass(frozen=True, slots=True)
class InTurn:
    """Another answer each time."""

    name: str
    answers: tuple[Answer, ...]
    _numbers: Iterator[int] = field(default_factory=count)

    async def meet(self, request: web.Request, forward: Forward, ended: asyncio.Event) -> web.StreamResponse:
        answer = self.answers[next(self._numbers) % len(self.answers)]
        return await answer.meet(request, forward, ended)


Fault = Answer | Reset | Down | Hang | Slow | InTurn


def _json(name: str, status: int, headers: Mapping[str, str] | None = None, /, **body: object) -> Answer:
    return Answer(name, status, json.dumps(body).encode(), headers=headers or {})


_HTML: Final = b"<html><body><h1>Bad gateway</h1></body></html>"

DOWN: Final = Down()
RESET: Final = Reset("reset")
LOST_ANSWER: Final = Reset("lost answer", after=True)
HALF_AN_ANSWER: Final = Reset("half an answer", after=True, cut_at=9)
HANG: Final = Hang()
SLOW: Final = Slow()
INTERNAL_ERROR: Final = _json("500", 500, errcode="M_UNKNOWN", error="Internal server error")
BAD_GATEWAY: Final = Answer("502 in HTML", 502, _HTML, "text/html")
HTML: Final = Answer("200 in HTML", 200, _HTML, "text/html")
GARBAGE: Final = Answer("garbage", 200, b'\x00\xff{"next_batch": ]')
HALF_A_BODY: Final = Answer("half a body", 200, b'{"next_batch": "s1", "rooms": {}}', cut_at=17)
NOT_AN_OBJECT: Final = Answer("a list", 200, b'["next_batch"]')
NONSENSE: Final = InTurn("nonsense", (BAD_GATEWAY, HTML, GARBAGE, HALF_A_BODY, NOT_AN_OBJECT))
TOKEN_GONE: Final = _json("token gone", 401, errcode="M_UNKNOWN_TOKEN", error="Unknown", soft_logout=False)
SOFT_LOGOUT: Final = _json("soft logout", 401, errcode="M_UNKNOWN_TOKEN", error="Soft", soft_logout=True)


def too_many(seconds: int, *, in_header: bool) -> Answer:
    """429 that asks for a pause, in the body as homeservers do, or in the header as proxies do."""
    if in_header:
        return _json("429 by header", 429, {"Retry-After": str(seconds)}, errcode="M_LIMIT_EXCEEDED", error="Slow")
    return _json("429 by body", 429, errcode="M_LIMIT_EXCEEDED", error="Slow", retry_after_ms=seconds * 1000)


HOMESERVER_FAULTS: Final[tuple[Fault, ...]] = (
    *(DOWN, RESET, HANG, SLOW, INTERNAL_ERROR, BAD_GATEWAY, HTML, GARBAGE, HALF_A_BODY, NOT_AN_OBJECT),
    *(LOST_ANSWER, HALF_AN_ANSWER, too_many(1, in_header=True), too_many(1, in_header=False)),
)
"""What may befall any request to a homeserver, and passes."""

MODEL_FAULTS: Final[tuple[Fault, ...]] = (
    *(DOWN, RESET, HANG, SLOW, BAD_GATEWAY, HTML, GARBAGE, NOT_AN_OBJECT, LOST_ANSWER, HALF_AN_ANSWER),
    _json("500 of a model", 500, error={"message": "internal", "type": "server_error"}),
    _json("429 of a model", 429, {"Retry-After": "1"}, error={"message": "slow down", "type": "rate_limit_error"}),
)
"""What may befall any request to a model's server, and passes."""


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
        rule = self._rule_for(Call(_now(), request.method, request.path))
        name = rule.fault.name if rule else None
        async with self._arrived:
            self.calls.append(Call(_now(), request.method, request.path, name))
            self._arrived.notify_all()
        body = await request.read()

        async def forward() -> web.Response:
            return await self._forward(request, body)

        if rule is not None:
            return await rule.fault.meet(request, forward, rule.ended)
        answer = await forward()
        for hang in self._hanging(request):
            await hang.ended.wait()
        return answer

    def _rule_for(self, call: Call) -> Rule | None:
        for rule in reversed(self._rules):
            if rule.only(call) and rule.left != 0:
                if rule.left is not None:
                    rule.left -= 1
                return rule
        return None

    def _hanging(self, request: web.Request) -> Iterator[Rule]:
        """A server that hangs does not answer what it was asked before either."""
        call = Call(_now(), request.method, request.path)
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


def _abort(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _cut(request: web.Request, status: int, body: bytes, at: int) -> web.StreamResponse:
    """Promise a whole body, and break the connection after the first `at` bytes of it."""
    headers: dict[str, Any] = {"Content-Type": "application/json", "Content-Length": str(max(len(body), at + 1))}
    response = web.StreamResponse(status=status, headers=headers)
    await response.prepare(request)
    await response.write(body[:at])
    return _abort(request)
