"""The public listener: opens the port, finds the path, and puts every answer into one JSON shape.

It stands on aiohttp's low-level server rather than its application: there every error, also those of a path, a method,
an `Expect` header or the HTTP parser, passes through our own hands, and none is answered in plain text.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Final

import structlog
from aiohttp import web

from bot.errors import ListenFailed
from bot.health import Health
from bot.ingest.bearer import BearerTokens
from bot.ingest.body import BODY_SECONDS
from bot.ingest.events import EventsEndpoint
from bot.ingest.hooks import HooksEndpoint
from bot.ingest.listener import IDLE_SECONDS, Door, Listener, open_doors
from bot.ingest.losses import AppendGap, Losses
from bot.ingest.refusals import NO_HEADERS, Internal, MethodNotAllowed, NotFound, Refusal, StorageUnavailable
from bot.ingest.source import Source
from bot.ingest.storing import Append
from bot.trouble import Trouble
from crdt import PipelineEvent, StoreDamaged

log = structlog.get_logger(__name__)

_STOP_SECONDS: Final = 2.0
"""How long a stop waits for requests in work; aiohttp may take it twice, and the whole service has 10 s."""

Route = Callable[[web.BaseRequest], Awaitable[web.Response]]


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
        self._host = host
        self._asked_port = port
        self._health = health
        self._damage = Trouble("event_log_damaged", level="error")
        self._idle_seconds = idle_seconds
        self._listener: Listener
        self._doors: list[Door] = []
        self._routes: Mapping[str, Mapping[str, Route]] = {
            "/v1/events": {"POST": self._post_events},
            "/healthz": {"GET": self._get_healthz, "HEAD": self._get_healthz},
            "/readyz": {"GET": self._get_readyz, "HEAD": self._get_readyz},
            **{f"/v1/hooks/{source.name}": {"POST": partial(self._post_hook, source)} for source in sources},
        }

    @property
    def port(self) -> int:
        """The port that is listened on, or that was asked for while nothing is."""
        return self._doors[0].port if self._doors else self._asked_port

    async def __aenter__(self) -> IngestServer:
        if not self._tokens:
            log.warning("no_ingest_tokens", effect="every POST /v1/events is refused", advice="set ingest.tokens")
        self._listener = Listener(self._answer, _refused, self._idle_seconds)
        try:
            self._doors = await open_doors(self._listener, self._host, self._asked_port)
        except (OSError, UnicodeError) as error:
            raise ListenFailed("ingest", self._host, self._asked_port, error) from error
        await self._losses.__aenter__()
        log.info("ingest_listening", host=self._host, port=self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for door in self._doors:
            await door.close()
        self._hooks.stop()
        self._listener.pre_shutdown()
        await self._listener.shutdown(_STOP_SECONDS)
        await self._losses.__aexit__(kind, error, trace)
        log.info("ingest_stopped", host=self._host, port=self.port)

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        try:
            response = await self._find_route(request)(request)
        except Refusal as refusal:
            response = _refused(refusal)
        except StoreDamaged as error:
            self._damage.met(str(error))
            response = _refused(StorageUnavailable())
        except Exception:  # One request that fails unforeseen must neither end the others nor show its insides.
            log.exception("request_failed", method=request.method, path=request.path)
            response = _refused(Internal())
        # The rest of a body would be taken for the next request's beginning; a full house needs the place.
        if not request.content.is_eof() or self._listener.is_full:
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
