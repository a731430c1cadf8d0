"""Takes a request's body off the wire within bounds of size and time."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import HttpVersion11, web

from bot.ingest.refusals import BodyTooSlow, ExpectationFailed, Malformed, TooLarge, UnsupportedMediaType

MAX_BODY_BYTES: Final = 1024 * 1024
BODY_SECONDS: Final = 10.0
"""Time for a whole body, from the moment we begin to read it."""

_ENCODED: Final = "the body must come as it is: leave out Content-Encoding, and any Transfer-Encoding but chunked"
_PLAIN: Final = frozenset({"", "identity", "chunked"})


def check_size(length: int) -> None:
    """Bound the bytes of a body.

    Raises:
        TooLarge: there are more than `MAX_BODY_BYTES`.
    """
    if length > MAX_BODY_BYTES:
        raise TooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes: send the events in several requests")


def check_declared_body(request: web.BaseRequest, content_types: frozenset[str]) -> None:
    """Refuse by its headers a body that would be refused when it is here.

    Raises:
        UnsupportedMediaType: it is not of one of `content_types`, not UTF-8, or encoded (compressed).
        TooLarge: its declared length is over the limit.
        ExpectationFailed: the client waits for something that we don't know.
    """
    encodings = [*request.headers.getall("Content-Encoding", []), *request.headers.getall("Transfer-Encoding", [])]
    if any(encoding.strip().lower() not in _PLAIN for encoding in encodings):
        raise UnsupportedMediaType(_ENCODED)
    if request.content_type not in content_types:
        raise UnsupportedMediaType(f"the Content-Type must be {' or '.join(sorted(content_types))}")
    if (request.charset or "utf-8").lower() not in {"utf-8", "utf8"}:
        raise UnsupportedMediaType("the charset must be utf-8")
    check_size(request.content_length or 0)
    if request.headers.get("Expect", "100-continue").strip().lower() != "100-continue":
        raise ExpectationFailed


async def read_body(request: web.BaseRequest, seconds: float) -> bytes:
    """Read the whole body; a client that waits for `100 Continue` is told to send it only now.

    Raises:
        TooLarge: more than `MAX_BODY_BYTES` came; the rest stays unread.
        BodyTooSlow: it was not complete within `seconds`.
        Malformed: it ended early or was framed wrongly.
    """
    try:
        async with asyncio.timeout(seconds):
            await _invite(request)
            return await _read_bounded(request)
    except TimeoutError:
        raise BodyTooSlow(seconds) from None
    except (OSError, web.RequestPayloadError):
        raise Malformed("the body ended before it was complete, or its chunks are framed wrongly") from None


async def _invite(request: web.BaseRequest) -> None:
    if "Expect" in request.headers and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # The interim answer is no part of the response, which otherwise counts as begun.
        request.writer.output_size = 0


async def _read_bounded(request: web.BaseRequest) -> bytes:
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        check_size(len(body))
    return bytes(body)
