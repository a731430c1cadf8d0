"""A homeserver of a few lines, for faults that a real one does not have on demand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from bot.matrix.model import Credentials, Identity

USER = "@musher:fake"
TOKEN = "a-valid-token"
IDENTITY = Identity(USER, "SLED", TOKEN)

Answer = web.StreamResponse | dict[str, Any]
Route = Callable[[web.Request], Awaitable[Answer] | Answer]


class FakeHomeserver:
    """Answers as `routes` says, by the longest end of the path that is in it.

    Else it answers as a homeserver where nobody has keys and no room is encrypted.
    """

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {
            "/versions": lambda _: {"versions": ["v1.11"]},
            "/account/whoami": lambda _: {"user_id": USER, "device_id": IDENTITY.device_id},
        }
        self.requests: list[web.Request] = []
        self._runner: web.AppRunner | None = None
        self.url = ""

    @property
    def credentials(self) -> Credentials:
        return Credentials(self.url, USER, access_token=TOKEN, device_id=IDENTITY.device_id)

    def asked(self, end: str) -> list[web.Request]:
        """The requests so far whose path ends with `end`."""
        return [request for request in self.requests if request.path.endswith(end)]

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        for end, route in sorted((_USUAL | self.routes).items(), key=lambda each: -len(each[0])):
            if request.path.endswith(end):
                answer = route(request)
                if isinstance(answer, Awaitable):
                    answer = await answer
                return web.json_response(answer) if isinstance(answer, dict) else answer
        return web.json_response({"errcode": "M_UNRECOGNIZED", "error": "Unrecognized request"}, status=404)


def _not_found(_request: web.Request) -> web.Response:
    return error(404, "M_NOT_FOUND")


_USUAL: dict[str, Route] = {
    "/keys/query": lambda _: {"device_keys": {}},
    "/keys/upload": lambda _: {"one_time_key_counts": {}},
    "/keys/device_signing/upload": lambda _: {},
    "/keys/signatures/upload": lambda _: {},
    "/state/m.room.encryption/": _not_found,
}


def error(status: int, errcode: str, *, headers: dict[str, str] | None = None, **fields: object) -> web.Response:
    body = {"errcode": errcode, "error": "the reason"} | fields
    return web.json_response(body, status=status, headers=headers)


def html(status: int) -> web.Response:
    return web.Response(status=status, text="<html>Something went wrong</html>", content_type="text/html")


async def truncated(request: web.Request) -> web.StreamResponse:
    """Begin an answer and hang up in the middle of it."""
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"next_batch": "s')
    assert request.transport is not None
    request.transport.close()
    return response


def message(number: int, **fields: object) -> dict[str, Any]:
    """A text message of somebody, as it stands in a timeline."""
    event: dict[str, Any] = {
        "type": "m.room.message",
        "event_id": f"$message-{number}",
        "sender": "@alice:fake",
        "origin_server_ts": 1_700_000_000_000 + number,
        "content": {"msgtype": "m.text", "body": f"message {number}"},
    }
    return event | fields


def synced(*events: Any, room: str = "!room:fake", next_batch: str = "s2", **timeline: object) -> dict[str, Any]:
    """The answer to a sync that brings `events` of one room."""
    return {"next_batch": next_batch, "rooms": {"join": {room: {"timeline": {"events": list(events)} | timeline}}}}
