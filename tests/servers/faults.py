"""The ways in which servers, networks and proxies fail, for `tests.servers.fault_proxy` to fail in."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from aiohttp import web


@dataclass(frozen=True, slots=True, eq=False)
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
class Swallow:
    """Say nothing, to what is under way neither, and never: no answer comes even after the fault.

    The server has not heard of the request or, `after`, has done what was asked.
    """

    name: str = "swallow"
    after: bool = False

    async def meet(self, request: web.Request, forward: Forward, ended: asyncio.Event) -> web.StreamResponse:
        if self.after:
            await forward()
        await asyncio.Event().wait()  # until the client hangs up
        raise AssertionError("nobody sets this event")


@dataclass(frozen=True, slots=True)
class Drip:
    """Answer truly, but a byte every `seconds`, until the fault ends."""

    name: str = "drip"
    seconds: float = 0.1

    async def meet(self, request: web.Request, forward: Forward, ended: asyncio.Event) -> web.StreamResponse:
        answer = await forward()
        body = answer.body
        assert isinstance(body, bytes)
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        response.content_length = len(body)
        await response.prepare(request)
        sent = 0
        while sent < len(body) and not ended.is_set():
            await response.write(body[sent : sent + 1])
            sent += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), self.seconds)
        await response.write(body[sent:])
        return response


@dataclass(frozen=True, slots=True)
class Bytes:
    """Answer with bytes that are no HTTP, and close the connection; with no bytes, only that."""

    name: str
    raw: bytes = b""

    async def meet(self, request: web.Request, forward: Forward, ended: asyncio.Event) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.write(self.raw)
            request.transport.close()
        return web.Response()


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


Fault = Answer | Reset | Down | Hang | Swallow | Drip | Bytes | Slow | InTurn


def _json(name: str, status: int, headers: Mapping[str, str] | None = None, /, **body: object) -> Answer:
    return Answer(name, status, json.dumps(body).encode(), headers=headers or {})


_HTML: Final = b"<html><body><h1>Bad gateway</h1></body></html>"

DOWN: Final = Down()
RESET: Final = Reset("reset")
LOST_ANSWER: Final = Reset("lost answer", after=True)
HALF_AN_ANSWER: Final = Reset("half an answer", after=True, cut_at=9)
HANG: Final = Hang()
SWALLOW: Final = Swallow()
SWALLOWED_ANSWER: Final = Swallow("swallowed answer", after=True)
DRIP: Final = Drip()
CLOSED: Final = Bytes("closed")
TLS_ALERT: Final = Bytes("TLS alert", b"\x15\x03\x01\x00\x02\x02\x46")
"""What a port for https says to somebody who speaks plain http."""
SLOW: Final = Slow()
INTERNAL_ERROR: Final = _json("500", 500, errcode="M_UNKNOWN", error="Internal server error")
BAD_GATEWAY: Final = Answer("502 in HTML", 502, _HTML, "text/html")
HTML: Final = Answer("200 in HTML", 200, _HTML, "text/html")
FIREWALL: Final = Answer("403 in HTML", 403, b"<html><body><h1>Request blocked</h1></body></html>", "text/html")
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
    *(DOWN, RESET, CLOSED, TLS_ALERT, HANG, SWALLOW, SLOW, DRIP, INTERNAL_ERROR, BAD_GATEWAY, HTML, GARBAGE),
    *(FIREWALL, HALF_A_BODY, NOT_AN_OBJECT, LOST_ANSWER, HALF_AN_ANSWER, SWALLOWED_ANSWER),
    *(too_many(1, in_header=True), too_many(1, in_header=False)),
)
"""What may befall any request to a homeserver, and passes."""


def _completion(name: str, content: bytes) -> Answer:
    """A reply of a model, as OpenAI's protocol has it; `content` is what stands between the quotes."""
    message = b'{"role": "assistant", "content": "' + content + b'"}'
    choice = b'{"index": 0, "finish_reason": "stop", "message": ' + message + b"}"
    return Answer(
        name, 200, b'{"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [' + choice + b"]}"
    )


MODEL_FAULTS: Final[tuple[Fault, ...]] = (
    *(DOWN, RESET, CLOSED, TLS_ALERT, HANG, SWALLOW, SLOW, DRIP, BAD_GATEWAY, HTML, GARBAGE, NOT_AN_OBJECT),
    *(LOST_ANSWER, HALF_AN_ANSWER),
    _json("500 of a model", 500, error={"message": "internal", "type": "server_error"}),
    _json("401 of a model", 401, error={"message": "Incorrect API key", "type": "invalid_request_error"}),
    _json("404 of a model", 404, error={"message": "no such model", "code": "model_not_found"}),
    _json("overflow", 400, error={"message": "maximum context length is 1", "code": "context_length_exceeded"}),
    _completion("empty reply", b""),
    _completion("control characters", b"a\\u0000b\\u001b[31mc"),
    _completion("no UTF-8", b"\xff\xfe"),
    _json("429 of a model", 429, {"Retry-After": "1"}, error={"message": "slow down", "type": "rate_limit_error"}),
)
"""What may befall any request to a model's server."""


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
