"""Accepts connections and speaks HTTP on them, within bounds: aiohttp's low-level server, with our connections.

Who comes to a full house is not turned away: connections that have not been accepted yet wait in the kernel, where they
cost nothing, and most senders wait longer for their turn than it takes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from typing import Any, Final

import structlog
from aiohttp import web

from bot.ingest.refusals import Internal, Malformed, Refusal

log = structlog.get_logger(__name__)

IDLE_SECONDS: Final = 75.0
"""How long a connection may take until its next request's headers are complete.

Longer than nginx holds an idle connection to its upstream (60 s by default), so that the proxy never
sends a request into a connection that is closing. It is also the deadline for slow headers.
"""
MAX_CONNECTIONS: Final = 512
"""Open connections; half of the usual limit of 1,024 file descriptors, which the database and Matrix share."""

_BACKLOG: Final = 4096
"""Connections that may wait to be accepted; the kernel's own bound (`net.core.somaxconn`) is the same by default."""
_LINGER_SECONDS: Final = 2.0
"""How long the rest of a refused body is thrown away, so that its sender gets to read the refusal."""
_ACCEPT_AGAIN_SECONDS: Final = 1.0
"""After an accept that failed, as it does when the process is out of file descriptors."""


class Listener(web.Server):
    """Makes a connection of each socket that is accepted, and counts them.

    `answer` handles a request; `refused` puts a refusal into an answer.
    """

    def __init__(
        self,
        answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        refused: Callable[[Refusal], web.Response],
        idle_seconds: float,
    ) -> None:
        super().__init__(answer)
        self.refused = refused
        self.places = asyncio.Semaphore(MAX_CONNECTIONS)
        self._idle_seconds = idle_seconds

    @property
    def is_full(self) -> bool:
        """Whether the next connection, for which a place is held, is the last that can be accepted now."""
        return self.places.locked()

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


class Door:
    """One listening socket, through which connections come while there are places."""

    def __init__(self, listener: Listener, listening: socket.socket) -> None:
        self._listener = listener
        self._listening = listening
        self.port: int = listening.getsockname()[1]
        self._accepting = asyncio.create_task(self._accept(), name="ingest-accept")

    async def close(self) -> None:
        """Accept no more; what is open stays open."""
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        self._listening.close()

    async def _accept(self) -> None:
        while True:
            await self._listener.places.acquire()
            try:
                await self._let_in()
            except ConnectionAbortedError:  # whoever it was has gone before it was let in
                self._listener.places.release()
            except Exception:  # One that fails, as all do while file descriptors are short, must not be the last.
                self._listener.places.release()
                log.warning("accept_failed", exc_info=True)
                await asyncio.sleep(_ACCEPT_AGAIN_SECONDS)

    async def _let_in(self) -> None:
        loop = asyncio.get_running_loop()
        accepted, _ = await loop.sock_accept(self._listening)
        await loop.connect_accepted_socket(self._listener, accepted)


async def open_doors(listener: Listener, host: str, port: int) -> list[Door]:
    """Listen on every address of a host.

    Raises:
        OSError: an address can't be had; none is listened on.
    """
    # It finds the addresses and binds to all of them or none.
    bound = await asyncio.get_running_loop().create_server(listener, host, port, start_serving=False)
    with closing(bound), ExitStack() as undo:
        sockets = [undo.enter_context(each.dup()) for each in bound.sockets]
        for each in sockets:
            each.setblocking(False)
            each.listen(_BACKLOG)
        undo.pop_all()
    return [Door(listener, each) for each in sockets]


class _Connection(web.RequestHandler):
    """aiohttp's connection, except that what its HTTP parser refuses is answered in our shape.

    The parser's message quotes the bytes that it choked on, which may be a token: it is neither sent nor logged.
    """

    __slots__ = ("_listener",)

    def __init__(self, listener: Listener, **options: Any) -> None:
        super().__init__(listener, **options)
        self._listener = listener

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._listener.places.release()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Let a client that closes its half when it has said all read the answer; then the connection is over."""
        is_idle = self._waiter is not None and not self._waiter.done()
        if is_idle or self._is_cut_off():
            return False
        self.close()
        # A request whose handling is being started is not to be seen in this moment.
        asyncio.get_running_loop().call_soon(self._end_if_cut_off)
        return True

    def _is_cut_off(self) -> bool:
        bodies = [body for _, body in self._messages]
        if self._current_request is not None:
            bodies.append(self._current_request.content)
        return any(not body.is_eof() for body in bodies)

    def _end_if_cut_off(self) -> None:
        if self.transport is not None and self._is_cut_off():
            self.transport.close()

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
        response = self._listener.refused(refusal)
        response.force_close()
        return response
