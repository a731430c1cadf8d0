"""`POST /v1/hooks/<source>`, top to bottom: what a sender says, whether it is the sender, what became of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog
from aiohttp import web

from bot.ingest.body import check_declared_body, read_body
from bot.ingest.losses import Losses
from bot.ingest.mapping import Mapped
from bot.ingest.places import Places
from bot.ingest.refusals import Refusal, Unavailable, Unproven, UnsupportedMediaType
from bot.ingest.signatures import Headers
from bot.ingest.source import Source
from bot.ingest.storing import Append, outcome, store_until
from bot.ingest.strict_json import parse_json
from crdt import EventBatch

log = structlog.get_logger(__name__)

_CONTENT_TYPES: Final = frozenset({"application/json"})
_FORM: Final = "application/x-www-form-urlencoded"


class HooksEndpoint:
    """Takes the deliveries of webhooks into the log, each by the rules of its source.

    One order of work: content type, headers, body within bounds, signature of the raw bytes, parsing, timestamp,
    mapping, and one commit of the events with the keys that know the delivery again. The answer comes last.
    """

    def __init__(
        self, append: Append, losses: Losses, body_seconds: float, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._append = append
        self._losses = losses
        self._body_seconds = body_seconds
        self._clock = clock
        self._places = Places()

    async def post(self, source: Source, request: web.BaseRequest) -> dict[str, object]:
        """Take one delivery and say what became of it: the JSON of the 202.

        Raises:
            Refusal: nothing was stored.
        """
        came = asyncio.get_running_loop().time()
        try:
            return await self._take(source, request, came + source.patience_s)
        except Refusal as refusal:
            reason = refusal.reason if isinstance(refusal, Unproven) else refusal.message
            log.info("delivery_refused", source=source.name, code=refusal.code, status=refusal.status, reason=reason)
            if isinstance(refusal, Unavailable):
                self._note_loss(source, refusal.code, came)
            raise
        except Exception as error:  # Whatever it was: a sender that never comes back has lost its delivery by it.
            self._note_loss(source, type(error).__name__, came)
            raise

    def _note_loss(self, source: Source, reason: str, came: float) -> None:
        if source.patience_s:
            self._losses.note(source.name, reason, asyncio.get_running_loop().time() - came)

    async def _take(self, source: Source, request: web.BaseRequest, deadline: float) -> dict[str, object]:
        _refuse_forms(request)
        check_declared_body(request, _CONTENT_TYPES)
        source.check_headers(request.headers, self._clock())
        async with self._places.take(source.patience_s):
            body = await read_body(request, self._body_seconds)
            source.verify(request.headers, body)
            mapped = self._map(source, request.headers, body)
            keys = source.dedupe_keys(request.headers, body)
            batches = [EventBatch(mapped.events, keys)] if mapped.events else []
            appended = await store_until(self._append, batches, deadline)
        became = outcome(batches, appended, ignored=0 if mapped.events else 1)
        log.info("delivery_accepted", source=source.name, by=mapped.by, reason=mapped.reason or None, **became)
        return became

    def _map(self, source: Source, headers: Headers, body: bytes) -> Mapped:
        content = parse_json(body)
        source.check_time(content, self._clock())
        return source.map(headers, content)


def _refuse_forms(request: web.BaseRequest) -> None:
    # It is what GitHub chooses unless told otherwise, so its people shall read what to choose instead.
    if request.content_type == _FORM:
        raise UnsupportedMediaType("set the content type of this webhook to application/json, where it is set up")
