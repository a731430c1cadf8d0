"""One request to the homeserver: JSON in, JSON or a `MatrixError` out. The only module that knows HTTP and nio.

Requests go through nio's transport, `AsyncClient.send`, and never through its request methods. Those repeat a 429 by
themselves without looking at `Retry-After`, drop the HTTP status, and turn a sync in which they trip over one event
into an error that would come again for ever.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, Final
from urllib.parse import quote, urlencode

from aiohttp import (
    ClientConnectionError,
    ClientConnectorError,
    ClientError,
    ClientHandlerType,
    ClientRequest,
    ClientResponse,
    ClientSession,
    InvalidURL,
    NonHttpUrlClientError,
)
from nio import AsyncClient, AsyncClientConfig  # type: ignore[import-untyped]

from bot.matrix.errors import (
    Forbidden,
    LoggedOut,
    MatrixError,
    NotAHomeserver,
    PasswordAsked,
    RateLimited,
    Refused,
    Unreachable,
)
from bot.matrix.model import Identity
from bot.matrix.second_asks import AFTER_SILENCE, USUAL, Patience, SecondAsks

CLIENT_API: Final = "/_matrix/client/v3"
REQUEST_TIMEOUT_S: Final = 60.0
DEFAULT_PAUSE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 900.0
"""The longest pause that a server, or a proxy before it, can ask for: a slip of theirs must not silence the bot."""
DEEPEST: Final = 200
"""Levels of JSON in an answer that Python's parser did not take whole; it takes 990 or more."""
LONGEST_REASON: Final = 300
"""Characters of a server's own words that go into an error."""

_BRACKETS: Final = re.compile(rb'[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+"?|.', re.DOTALL)
"""Of JSON: what holds no bracket, a string, and whatever is left: a bracket."""
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
"""Those that aiohttp follows."""
_LOGGED_OUT: Final = frozenset({"M_UNKNOWN_TOKEN", "M_MISSING_TOKEN", "M_USER_LOCKED", "M_USER_DEACTIVATED"})
_SUSPENDED: Final = frozenset({"M_RESOURCE_LIMIT_EXCEEDED", "M_CONSENT_NOT_GIVEN", "M_USER_SUSPENDED"})
"""A server that is closed or full for a while, and an account that waits for somebody's word: both take it later."""


class Wire:
    """The connection to one homeserver, as one user and, once adopted, as one of that user's devices."""

    def __init__(self, homeserver: str, user_id: str, second_asks: SecondAsks | None = None) -> None:
        """With `second_asks`, what is not answered in time is asked again."""
        self.homeserver = homeserver.rstrip("/")
        self.user_id = user_id
        config = AsyncClientConfig(
            encryption_enabled=False, store=None, store_sync_tokens=False, max_limit_exceeded=0, max_timeouts=0
        )
        self._nio = AsyncClient(self.homeserver, user_id, config=config)
        self._second_asks = second_asks

    def adopt(self, identity: Identity) -> None:
        """Make all further requests as this device."""
        # Set one by one: nio's restore_login() insists on an encryption store.
        self._nio.user_id = identity.user_id
        self._nio.device_id = identity.device_id
        self._nio.access_token = identity.access_token

    @property
    def access_token(self) -> str:
        """Of the device that was adopted; empty before."""
        return self._nio.access_token or ""

    async def close(self) -> None:
        await self._nio.close()

    async def get(
        self,
        *path: str,
        query: Mapping[str, str] | None = None,
        room: str | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
        patience: Patience = USUAL,
        again: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """With `again`, that is the query of a second request beside the first."""
        return await self.request(
            "GET",
            CLIENT_API + _path(path, query),
            room=room,
            timeout_s=timeout_s,
            patience=patience,
            path_again=None if again is None else CLIENT_API + _path(path, again),
        )

    async def put(self, *path: str, body: Mapping[str, Any], room: str | None = None) -> dict[str, Any]:
        return await self.request("PUT", CLIENT_API + _path(path), body=body, room=room, patience=USUAL)

    async def post(
        self, *path: str, body: Mapping[str, Any], room: str | None = None, patience: Patience = AFTER_SILENCE
    ) -> dict[str, Any]:
        return await self.request("POST", CLIENT_API + _path(path), body=body, room=room, patience=patience)

    async def log_out(self, token: str) -> None:
        """End another login, which deletes its device."""
        await self.request("POST", f"{CLIENT_API}/logout", body={}, token=token, patience=None)

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        room: str | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
        as_nobody: bool = False,
        token: str | None = None,
        patience: Patience | None = AFTER_SILENCE,
        path_again: str | None = None,
    ) -> dict[str, Any]:
        """Return the answer's JSON object.

        But with a `patience` of `None`, the request may be made a second time beside the first, then at `path_again` if
        there is one.

        `room` is the room that the request is about, for the error. `as_nobody` leaves the access token out, `token`
        is one of another login. Raises `Unreachable`, `RateLimited`, `LoggedOut`, `Forbidden` (only with `room`),
        `PasswordAsked`, `Refused`, and `NotAHomeserver` where the address itself is no URL.
        """
        token = "" if as_nobody else token or self._nio.access_token

        async def ask(again: bool) -> tuple[int, Mapping[str, str], bytes]:
            return await self._exchange(method, path_again or path if again else path, body, token, timeout_s)

        if patience is None or self._second_asks is None:
            status, headers, raw = await ask(False)
        else:
            status, headers, raw = await self._second_asks.answer(ask, patience)
        answer = _parse(raw)
        if 200 <= status < 300 and answer is not None:
            return answer
        raise self._error(status, headers, answer, room)

    async def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None, token: str, timeout_s: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body)
        try:
            response: ClientResponse = await self._session().send(method, path, data, headers, timeout=timeout_s)
            async with response:
                return response.status, response.headers, await response.read()
        except (InvalidURL, NonHttpUrlClientError) as error:
            raise NotAHomeserver(self.homeserver or "(nothing)", "that is no http or https URL") from error
        except _Redirected as error:
            raise Unreachable(self.homeserver, str(error), error.status) from error
        except TimeoutError as error:
            raise Unreachable(self.homeserver, f"no answer within {timeout_s:g} s") from error
        except (ClientError, OSError) as error:
            raise Unreachable(self.homeserver, str(error) or type(error).__name__) from error

    def list_in(self, answer: Mapping[str, Any], name: str) -> list[Any]:
        """The list that an answer has to hold. Raises `Unreachable`: one without it says nothing, not "none"."""
        found = answer.get(name)
        if not isinstance(found, list):
            raise Unreachable(self.homeserver, f"an answer without its {name}")
        return found

    def _session(self) -> AsyncClient:
        if self._nio.client_session is None:
            self._nio.client_session = ClientSession(middlewares=(_once,))
        return self._nio

    def _error(
        self, status: int, headers: Mapping[str, str], answer: dict[str, Any] | None, room: str | None
    ) -> MatrixError:
        fields = answer or {}
        # Who is no homeserver refuses nothing for good, but for what is too large: a repetition would be as large.
        errcode = _text(fields.get("errcode")) or ("M_TOO_LARGE" if status == 413 else "")
        message = " ".join(_text(fields.get("error")).split())[:LONGEST_REASON] or f"HTTP status {status}"
        if status == 429 or errcode == "M_LIMIT_EXCEEDED":
            return RateLimited(self.homeserver, _pause(headers.get("Retry-After"), fields.get("retry_after_ms")))
        session = fields.get("session")
        if status == 401 and isinstance(fields.get("flows"), list) and isinstance(session, str):
            return PasswordAsked(self.homeserver, session)
        unknown = room is not None and errcode == "M_UNRECOGNIZED"  # every homeserver knows what is asked about rooms
        suspended = errcode in _SUSPENDED
        if status >= 500 or not errcode or unknown or suspended:
            kind = errcode or ("no Matrix error" if status >= 300 else "no JSON object")
            kind += f": {message}" if suspended else ""
            return Unreachable(self.homeserver, f"HTTP status {status}, {kind}", status)
        if errcode in _LOGGED_OUT:
            return LoggedOut(self.user_id, self.homeserver, soft=fields.get("soft_logout") is True)
        if room is not None and errcode == "M_FORBIDDEN":
            return Forbidden(room, message)
        return Refused(self.homeserver, errcode, message)


class _Redirected(ClientError):
    """The answer is a redirect. Followed, a POST becomes a GET, and the access token is left out."""

    def __init__(self, response: ClientResponse) -> None:
        self.status = response.status
        location = " ".join(response.headers.get("Location", "").split())[:LONGEST_REASON]
        super().__init__(f"HTTP status {self.status}, a redirect to {location or 'nowhere'}")


async def _once(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """Keep aiohttp from following redirects, and from repeating, at once, what met a connection that broke."""
    try:
        response = await handler(request)
    except ClientConnectorError:  # not repeated
        raise
    except ClientConnectionError as error:
        raise ClientError(str(error) or type(error).__name__) from error
    if response.status in _REDIRECTS:
        response.close()
        raise _Redirected(response)
    return response


def _path(parts: tuple[str, ...], query: Mapping[str, str] | None = None) -> str:
    path = "".join("/" + quote(part, safe="") for part in parts)
    return path + ("?" + urlencode(query) if query else "")


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        answer = _parse_strange(raw)
    return answer if isinstance(answer, dict) else None


def _parse_strange(raw: bytes) -> object:
    """Parse JSON but for what is nested too deep or too long a number for Python's parser; `None` if it is no JSON.

    Others' parsers take more, and whoever sent such a thing would have the same sync fail for ever.
    """
    try:
        return json.loads(_without_depths(raw), parse_int=lambda digits: int(digits) if len(digits) < 20 else None)
    except (ValueError, RecursionError):
        return None


def _without_depths(raw: bytes) -> bytes:
    """The same JSON with `null` for what is nested deeper than `DEEPEST`."""
    kept, begin, depth = bytearray(), 0, 0
    for token in _BRACKETS.finditer(raw):
        if token.group() in (b"[", b"{"):
            depth += 1
            if depth == DEEPEST:
                kept += raw[begin : token.start()] + b"null"
        elif token.group() in (b"]", b"}"):
            if depth == DEEPEST:
                begin = token.end()
            depth -= 1
    return bytes(kept + raw[begin:] if depth < DEEPEST else kept)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _pause(header: str | None, retry_after_ms: object) -> float:
    """The pause in seconds: by the header (seconds or a date, RFC 9110 section 10.2.3), else by the body."""
    pause = _header_pause(header) if header else None
    if pause is None and isinstance(retry_after_ms, int | float):
        pause = min(retry_after_ms, LONGEST_PAUSE_S * 1000) / 1000
    if pause is None or not pause >= 0:  # NaN too
        return DEFAULT_PAUSE_S
    return min(pause, LONGEST_PAUSE_S)


def _header_pause(header: str) -> float | None:
    try:
        if header.strip().isdecimal():
            return float(header)
        return max(0.0, parsedate_to_datetime(header).timestamp() - time())
    except ValueError:
        return None
