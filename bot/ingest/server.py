"""The public listener: opens the port, finds the path, and puts every answer into one JSON shape.

It stands on aiohttp's low-level server rather than its application: there every error, also those of a path, a method,
an `Expect` header or the HTTP parser, passes through our own hands, and none is answered in plain text.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final, cast

import structlog
from aiohttp import web

from bot.errors import MusherError
from bot.health import Health
from bot.ingest.bearer import BearerTokens
from bot.ingest.body import BODY_SECONDS
from bot.ingest.events import EventsEndpoint
from bot.ingest.hooks import HooksEndpoint
from bot.ingest.losses import AppendGap, Losses
from bot.ingest.refusals import NO_HEADERS, Internal, Malformed, MethodNotAllowed, NotFound, Refusal
from bot.ingest.source import Source
from bot.ingest.storing import Append
from crdt import PipelineEvent

log = structlog.get_logger(__name__)

IDLE_SECONDS: Final = 75.0
"""How long a connection may take until its next request's headers are complete.

Longer than nginx holds an idle connection to its upstream (60 s by default), so that the proxy never
sends a request into a connection that is closing. It is also the deadline for slow headers.
"""
MAX_CONNECTIONS: Final = 512
"""Open connections; half of the usual limit of 1,024 file descriptors, which the database and Matrix share."""

_LINGER_SECONDS: Final = 2.0
"""How long the rest of a refused body is thrown away, so that its sender gets to read the refusal."""
_STOP_SECONDS: Final = 2.0
"""How long a stop waits for requests in work; aiohttp may take it twice, and the whole service has 10 s."""

Route = Callable[[web.BaseRequest], Awaitable[web.Response]]


class ListenFailed(MusherError):
    """The address can't be listened on; no request was served."""

    def __init__(self, host: str, port: int, problem: str) -> None:
        super().__init__(
            f"can't listen on {host}:{port} ({problem}): "
            "stop what uses that address, or change ingest.host or ingest.port"
        )


class IngestServer:
    """Serves `POST /v1/events`, `POST /v1/hooks/<source>`, `GET /healthz` and `GET /readyz` while its context is open.

    `append` is called once per request; it must not be torn by cancellation (a stop may cancel requests in work).
    `append_gap` stores the sentinel for deliveries that are lost for good; without it they are only logged.
    `port` 0 lets the system choose; `server.port` says which.

    Raises:
        ListenFailed: on entering, when the address can't be had.
    """

    def __init__(
        self,
        append: Append,
        tokens: Iterable[str],
        host: str,
        port: int,
        health: Health,
        *,
        sources: Iterable[Source] = (),
        append_gap: AppendGap | None = None,
        body_seconds: float = BODY_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._tokens = BearerTokens(tokens)
        self._events = EventsEndpoint(append, self._tokens, body_seconds)
        self._losses = Losses(append_gap or _log_gap)
        self._hooks = HooksEndpoint(append, self._losses, body_seconds)
        sources = list(sources)
        self._loses_deliveries = any(source.patience_s for source in sources)
        self._host = host
        self._asked_port = port
        self._health = health
        self._idle_seconds = idle_seconds
        self._runner: web.ServerRunner | None = None
        self._site: web.TCPSite | None = None
        self._routes: Mapping[str, Mapping[str, Route]] = {
            "/v1/events": {"POST": self._post_events},
            "/healthz": {"GET": self._get_healthz, "HEAD": self._get_healthz},
            "/readyz": {"GET": self._get_readyz, "HEAD": self._get_readyz},
            **{f"/v1/hooks/{source.name}": {"POST": partial(self._post_hook, source)} for source in sources},
        }

    @property
    def port(self) -> int:
        """The port that is listened on, or that was asked for while nothing is."""
        return self._site.port if self._site else self._asked_port

    async def __aenter__(self) -> IngestServer:
        if not self._tokens:
            log.warning("no_ingest_tokens", effect="every POST /v1/events is refused", advice="set ingest.tokens")
        runner = web.ServerRunner(
            _Listener(self._answer, self._idle_seconds, self._note_turned_away), shutdown_timeout=_STOP_SECONDS
        )
        await runner.setup()
        site = web.TCPSite(runner, self._host, self._asked_port)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            raise ListenFailed(self._host, self._asked_port, error.strerror or str(error)) from error
        self._runner, self._site = runner, site
        await self._losses.__aenter__()
        log.info("ingest_listening", host=self._host, port=self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            await self._losses.__aexit__(kind, error, trace)
        log.info("ingest_stopped", host=self._host, port=self.port)

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        try:
            response = await self._find_route(request)(request)
        except Refusal as refusal:
            response = _refused(refusal)
        except Exception:  # One request that fails unforeseen must neither end the others nor show its insides.
            log.exception("request_failed", method=request.method, path=request.path)
            response = _refused(Internal())
        if not request.content.is_eof():
            # The rest of the body would be taken for the next request's beginning.
            response.force_close()
        return response

    def _find_route(self, request: web.BaseRequest) -> Route:
        methods = self._routes.get(request.path)
        if methods is None:
            raise NotFound
        route = methods.get(request.method)
        if route is None:
            raise MethodNotAllowed(", ".join(methods))
        return route

    def _note_turned_away(self) -> None:
        log.info("connection_refused", limit=MAX_CONNECTIONS)
        if self._loses_deliveries:
            self._losses.note("(unknown)", "too_many_connections")

    async def _post_events(self, request: web.BaseRequest) -> web.Response:
        return _json(202, await self._events.post(request))

    async def _post_hook(self, source: Source, request: web.BaseRequest) -> web.Response:
        return _json(202, await self._hooks.post(source, request))

    async def _get_healthz(self, _request: web.BaseRequest) -> web.Response:
        return _json(200, {"status": "ok"})

    async def _get_readyz(self, _request: web.BaseRequest) -> web.Response:
        if self._health.ready():
            return _json(200, {"status": "ok"})
        return _json(503, {"status": "unavailable"})


async def _log_gap(sentinel: PipelineEvent) -> int:
    log.error("gap_not_stored", first=sentinel.from_stage, last=sentinel.to_stage)
    return 0


class _Listener(web.Server):
    """aiohttp's server, with our connections in place of its own."""

    def __init__(
        self,
        answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        idle_seconds: float,
        note_turned_away: Callable[[], None],
    ) -> None:
        super().__init__(answer)
        self._idle_seconds = idle_seconds
        self.note_turned_away = note_turned_away

    def __call__(self) -> web.RequestHandler:
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=self._idle_seconds,
            lingering_time=_LINGER_SECONDS,
            # An encoded body is refused; it must not be unpacked on its way to the refusal.
            auto_decompress=False,
            # Requests are logged by their outcome, as facts.
            access_log=None,
        )


class _Connection(web.RequestHandler):
    """aiohttp's connection, except that what its HTTP parser refuses is answered in our shape.

    The parser's message quotes the bytes that it choked on, which may be a token: it is neither sent nor logged.
    """

    __slots__ = ("_listener",)

    def __init__(self, listener: _Listener, **options: Any) -> None:
        super().__init__(listener, **options)
        self._listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self._listener.connections) > MAX_CONNECTIONS:
            # Nobody knows what it would have said: perhaps what a sender never says again.
            self._listener.note_turned_away()
            cast("asyncio.Transport", transport).abort()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Let a client that closes its half when it has said all read the answer; then the connection is over."""
        is_idle = self._waiter is not None and not self._waiter.done()
        request = self._current_request
        is_cut_off = request is not None and not request.content.is_eof()
        if is_idle or is_cut_off:
            return False
        self.close()
        return True

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status < 500:
            log.debug("request_unreadable", status=status)
            refusal: Refusal = Malformed("this is not a valid HTTP request")
        else:
            log.error("request_failed", exc_info=exc)
            refusal = Internal()
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already, no other can follow it")
        response = _refused(refusal)
        response.force_close()
        return response


def _refused(refusal: Refusal) -> web.Response:
    error = {"code": refusal.code, "message": refusal.message, "field": refusal.field}
    return _json(refusal.status, {"error": error}, refusal.headers)


def _json(status: int, content: Mapping[str, object], headers: Mapping[str, str] = NO_HEADERS) -> web.Response:
    # aiohttp would otherwise name its version and Python's.
    return web.Response(
        status=status,
        body=json.dumps(content).encode(),
        content_type="application/json",
        headers={"Server": "musher", "Cache-Control": "no-store", **headers},
    )
