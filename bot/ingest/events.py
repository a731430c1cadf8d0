"""`POST /v1/events`, top to bottom: who asks, what they send, what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import structlog
from aiohttp import web

from bot.ingest import cloudevents, native
from bot.ingest.bearer import BearerTokens
from bot.ingest.body import check_declared_body, read_body
from bot.ingest.places import Places
from bot.ingest.refusals import Refusal
from bot.ingest.signatures import Headers
from bot.ingest.storing import Append, outcome, store
from crdt import EventBatch

log = structlog.get_logger(__name__)


def _parse_json_body(headers: Headers, body: bytes) -> list[EventBatch]:
    return cloudevents.parse_binary(headers, body) if cloudevents.is_binary(headers) else native.parse_events(body)


_FORMATS: Final[Mapping[str, Callable[[Headers, bytes], list[EventBatch]]]] = MappingProxyType(
    {
        "application/json": _parse_json_body,
        cloudevents.STRUCTURED: lambda _headers, body: cloudevents.parse_structured(body),
        cloudevents.BATCH: lambda _headers, body: cloudevents.parse_batch(body),
    }
)
_CONTENT_TYPES: Final = frozenset(_FORMATS)


class EventsEndpoint:
    """Takes events from the holders of a token into the log.

    What is cheap and tells strangers nothing comes first: the headers before the body, the body before its
    meaning. Nothing is stored unless all of it is accepted.
    """

    def __init__(self, append: Append, tokens: BearerTokens, body_seconds: float) -> None:
        self._append = append
        self._tokens = tokens
        self._body_seconds = body_seconds
        self._places = Places()

    async def post(self, request: web.BaseRequest) -> dict[str, object]:
        """Store the events of a request and say what became of them: the JSON of the 202.

        Raises:
            Refusal: nothing was stored.
        """
        try:
            check_declared_body(request, _CONTENT_TYPES)
            self._tokens.check(request.headers)
            async with self._places.take():
                body = await read_body(request, self._body_seconds)
                batches = _FORMATS[request.content_type](request.headers, body)
                appended = await store(self._append, batches)
        except Refusal as refusal:
            log.info("events_refused", code=refusal.code, status=refusal.status)
            raise
        became = outcome(batches, appended)
        log.info("events_accepted", **became)
        return became
