"""The private listener: metrics for Prometheus, and the state of every part for people. It shows all details."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Final, Protocol

import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from bot.errors import ListenFailed
from bot.health import Health
from bot.metrics import Metrics
from crdt import Statistics, StoreDamaged, StoreUnavailable

log = structlog.get_logger(__name__)

_STOP_SECONDS: Final = 1.0
"""How long a stop waits for requests in work; the whole service has 10 s."""


class Measured(Protocol):
    """What the listener needs of the store."""

    async def statistics(self) -> Statistics: ...


class AdminServer:
    """Serves `GET /metrics` and `GET /status` while its context is open. `port` 0 lets the system choose.

    `identity` says who this service is, in /status.

    Raises:
        ListenFailed: on entering, when the address can't be had.
    """

    def __init__(
        self, host: str, port: int, store: Measured, health: Health, metrics: Metrics, identity: Mapping[str, str]
    ) -> None:
        self._host = host
        self._asked_port = port
        self._store = store
        self._health = health
        self._metrics = metrics
        self._identity = identity
        self._site: web.TCPSite | None = None
        app = web.Application()
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/status", self._get_status)
        app.on_response_prepare.append(_sign)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_STOP_SECONDS)

    @property
    def port(self) -> int:
        """The port that is listened on, or that was asked for while nothing is."""
        return self._site.port if self._site else self._asked_port

    async def __aenter__(self) -> AdminServer:
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._asked_port)
        try:
            await site.start()
        except (OSError, UnicodeError) as error:
            await self._runner.cleanup()
            raise ListenFailed("admin", self._host, self._asked_port, error) from error
        self._site = site
        log.info("admin_listening", host=self._host, port=self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _get_metrics(self, _request: web.Request) -> web.Response:
        text = self._metrics.text(await self._statistics(), self._health)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def _get_status(self, _request: web.Request) -> web.Response:
        statistics = await self._statistics()
        status = {
            "ready": self._health.ready(),
            **self._identity,
            "parts": {name: asdict(state) for name, state in self._health.states().items()},
            "store": None if statistics is None else asdict(statistics),
        }
        return web.Response(text=json.dumps(status, indent=2) + "\n", content_type="application/json")

    async def _statistics(self) -> Statistics | None:
        """What the store says of itself; nothing while it can't be read, which the part "store" tells."""
        try:
            return await self._store.statistics()
        except (StoreUnavailable, StoreDamaged) as error:
            log.debug("statistics_unavailable", reason=str(error))
            return None


async def _sign(_request: web.Request, response: web.StreamResponse) -> None:
    # aiohttp would otherwise name its version and Python's.
    response.headers["Server"] = "musher"
    response.headers["Cache-Control"] = "no-store"
