"""A language model that does what the test says, behind OpenAI's protocol on loopback.

Each chat request takes the next scripted behaviour (`Reply`, `Status`, `Cut`, `Raw`); when none is left, `answer` gives
the reply. The requests are kept as they arrived: they are what the model knows.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

PATIENCE = 20.0
"""Seconds to wait for requests that should arrive, before the test fails."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One chat request as it arrived; `number` counts from 1 and in order of arrival."""

    number: int
    body: dict[str, Any]
    headers: Mapping[str, str]

    @property
    def messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self.body["messages"]
        return messages

    @property
    def text(self) -> str:
        """The content of the newest user message."""
        return next((text_of(m) for m in reversed(self.messages) if m["role"] == "user"), "")


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer with `text` (None: what `ScriptedModel.answer` says; "": an empty reply), once `gate` is set.

    A stream is sent word by word; its first `before_gate` words don't wait for the gate.
    """

    text: str | None = None
    gate: asyncio.Event | None = None
    before_gate: int = 0
    finish_reason: str = "stop"


@dataclass(frozen=True, slots=True)
class Status:
    """Refuse with an HTTP status and an error of OpenAI's shape. `retry_after` is the header's value, in seconds."""

    status: int
    message: str = "scripted failure"
    code: str | None = None
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """Cut the connection: before any answer, or after `words` words of `text` in a stream."""

    text: str = ""
    words: int = 0


@dataclass(frozen=True, slots=True)
class Raw:
    """Answer 200 with these bytes. With `cut_at` the connection breaks after so many of them."""

    body: bytes
    cut_at: int | None = None


Behaviour = Reply | Status | Cut | Raw


@dataclass(eq=False)
class ScriptedModel:
    """Serves `models` while its `async with` block lasts; with an `api_key` it refuses all others with 401.

    `answer` makes the reply of each request that no behaviour was scripted for: by default "reply <number>".
    `behaviour` decides on such a request by what it says: by default to reply.
    """

    models: Sequence[str] = ("test-model",)
    api_key: str | None = None
    answer: Callable[[ModelRequest], str] = lambda request: f"reply {request.number}"
    behaviour: Callable[[ModelRequest], Behaviour] = lambda _: Reply()
    requests: list[ModelRequest] = field(default_factory=list)
    _script: deque[Behaviour] = field(default_factory=deque)
    _arrived: asyncio.Condition = field(default_factory=asyncio.Condition)
    _runner: web.AppRunner | None = None
    _port: int = 0

    @property
    def url(self) -> str:
        """The base URL for clients."""
        return f"http://127.0.0.1:{self._port}/v1"

    def script(self, *behaviours: Behaviour) -> None:
        """Queue behaviours, one for each of the next chat requests."""
        self._script.extend(behaviours)

    def hang(self) -> asyncio.Event:
        """Let the next chat request that has nothing scripted before it wait until the returned gate is set."""
        gate = asyncio.Event()
        self.script(Reply(gate=gate))
        return gate

    async def wait_for_requests(self, count: int, timeout: float = PATIENCE) -> list[ModelRequest]:
        """Wait until `count` chat requests have arrived in all, and return all. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout), self._arrived:
            await self._arrived.wait_for(lambda: len(self.requests) >= count)
        return list(self.requests)

    async def start(self) -> None:
        """Listen; after a `stop`, on the same port."""
        app = web.Application(middlewares=[self._authenticate], client_max_size=64 * 1024 * 1024)
        self._route(app.router)
        # A client that gives up, or the end of the test, is to end also a request that hangs.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening and cut every connection, as a server that goes down."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _route(self, router: web.UrlDispatcher) -> None:
        router.add_get("/v1/models", self._list_models)
        router.add_get("/v1/models/{name:.+}", self._show_model)
        router.add_post("/v1/chat/completions", self._chat)

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.api_key is not None and self._key_of(request) != self.api_key:
            return self._error(Status(401, "Incorrect API key provided.", "invalid_api_key"))
        response: web.StreamResponse = await handler(request)
        return response

    def _key_of(self, request: web.Request) -> str:
        return request.headers.get("Authorization", "").removeprefix("Bearer ")

    async def _list_models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._model(name) for name in self.models]})

    async def _show_model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.json_response(self._model(name)) if name in self.models else self._no_such_model(name)

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": "tests"}

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        try:
            body = json.loads(await http.read())
            asked, _ = body["model"], body["messages"]
        except (ValueError, TypeError, KeyError) as error:
            return self._error(Status(400, f"We could not parse the JSON body of your request: {error!r}"))
        request = ModelRequest(len(self.requests) + 1, body, http.headers.copy())
        async with self._arrived:
            self.requests.append(request)
            self._arrived.notify_all()
        if asked not in self.models:
            return self._no_such_model(asked)
        behaviour = self._script.popleft() if self._script else self.behaviour(request)
        return await self._behave(behaviour, request, http)

    async def _behave(self, behaviour: Behaviour, request: ModelRequest, http: web.Request) -> web.StreamResponse:
        match behaviour:
            case Status():
                return self._error(behaviour)
            case Cut():
                if request.body.get("stream") and behaviour.words:
                    words = _words(behaviour.text)[: behaviour.words]
                    await _stream(http, request, _spoken(words), finish_reason=None)
                assert http.transport is not None
                http.transport.abort()
                return web.Response()
            case Raw():
                return await _raw(behaviour, http)
            case Reply():
                return await self._reply(behaviour, request, http)

    async def _reply(self, reply: Reply, request: ModelRequest, http: web.Request) -> web.StreamResponse:
        text = self.answer(request) if reply.text is None else reply.text
        if request.body.get("stream"):
            words = _spoken(_words(text), reply.gate, reply.before_gate)
            return await _stream(http, request, words, reply.finish_reason)
        if reply.gate is not None:
            await reply.gate.wait()
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish_reason}
        return web.json_response(_envelope(request) | {"choices": [choice], "usage": _usage(request, text)})

    def _no_such_model(self, name: str) -> web.Response:
        words = f"The model `{name}` does not exist or you do not have access to it."
        return self._error(Status(404, words, "model_not_found"))

    def _error(self, refusal: Status) -> web.Response:
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            refusal.status, "server_error" if refusal.status >= 500 else "invalid_request_error"
        )
        body = {"error": {"message": refusal.message, "type": kind, "param": None, "code": refusal.code}}
        return web.json_response(body, status=refusal.status, headers=retry_header(refusal))


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a chat message, whose content is a string or a list of parts."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())


async def _raw(raw: Raw, http: web.Request) -> web.StreamResponse:
    headers = {"Content-Type": "application/json", "Content-Length": str(len(raw.body))}
    response = web.StreamResponse(headers=headers)
    await response.prepare(http)
    await response.write(raw.body[: raw.cut_at])
    if raw.cut_at is not None and http.transport is not None:
        http.transport.abort()
    return response


def _words(text: str) -> list[str]:
    """`text` cut after each run of white space."""
    return re.findall(r"\S*\s+|\S+", text)


async def _spoken(words: list[str], gate: asyncio.Event | None = None, before_gate: int = 0) -> AsyncIterator[str]:
    for word in words[:before_gate]:
        yield word
    if gate is not None:
        await gate.wait()
    for word in words[before_gate:]:
        yield word


async def _stream(
    http: web.Request, request: ModelRequest, words: AsyncIterator[str], finish_reason: str | None
) -> web.StreamResponse:
    """Send the words as server-sent events; with no finish reason the stream is left open."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(http)
    said = ""

    async def emit(choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> None:
        chunk = _envelope(request, "chat.completion.chunk") | {"choices": choices, "usage": usage}
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())

    await emit([_delta({"role": "assistant", "content": ""})])
    async for word in words:
        said += word
        await emit([_delta({"content": word})])
    if finish_reason is None:
        return response
    await emit([_delta({}, finish_reason)])
    if (request.body.get("stream_options") or {}).get("include_usage"):
        await emit([], _usage(request, said))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _delta(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _envelope(request: ModelRequest, kind: str = "chat.completion") -> dict[str, Any]:
    return {"id": f"chatcmpl-{request.number}", "object": kind, "created": 0, "model": request.body["model"]}


def _usage(request: ModelRequest, reply: str) -> dict[str, int]:
    """Token counts as if each word were one token."""
    prompt = sum(len(text_of(message).split()) for message in request.messages)
    completion = len(reply.split())
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def retry_header(refusal: Status) -> dict[str, str]:
    """The `Retry-After` that a refusal is sent with, if any."""
    return {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
