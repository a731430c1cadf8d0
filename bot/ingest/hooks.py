"""`POST /v1/hooks/<source>`, top to bottom: what a sender says, whether it is the sender, what became of it."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

import structlog
from aiohttp import web

from bot.ingest.body import check_declared_body, read_body
from bot.ingest.losses import Losses
from bot.ingest.mapping import Mapped
from bot.ingest.places import Places
from bot.ingest.refusals import Overloaded, Refusal, Unavailable, Unproven, UnsupportedMediaType
from bot.ingest.signatures import Headers
from bot.ingest.source import Source
from bot.ingest.storing import Append, outcome, store_until
from bot.ingest.strict_json import parse_json
from crdt import Appended, EventBatch

log = structlog.get_logger(__name__)

_CONTENT_TYPES: Final = frozenset({"application/json"})
_FORM: Final = "application/x-www-form-urlencoded"


class HooksEndpoint:
    """Takes the deliveries of webhooks into the log, each by the rules of its source.

    One order of work: content type, headers, body within bounds, signature of the raw bytes; and of what is proven,
    parsing, timestamp, mapping, and one commit of the events with the keys that know the delivery again. The answer
    comes last. What is lost after its proof is noted for the sessions; a stranger's noise is not.
    """

    def __init__(
        self, append: Append, losses: Losses, body_seconds: float, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._append = append
        self._losses = losses
        self._body_seconds = body_seconds
        self._clock = clock
        self._reading: defaultdict[str, Places] = defaultdict(Places)
        self._storing = Places()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Let no delivery wait any longer: each is taken now, or told to be lost."""
        self._stopping.set()
        for places in (*self._reading.values(), self._storing):
            places.close()

    async def post(self, source: Source, request: web.BaseRequest) -> dict[str, object]:
        """Take one delivery and say what became of it: the JSON of the 202.

        Raises:
            Refusal: nothing was stored.
        """
        came = asyncio.get_running_loop().time()
        try:
            body = await self._receive(source, request)
            return await self._take(source, request.headers, body, came)
        except Refusal as refusal:
            reason = refusal.reason if isinstance(refusal, Unproven) else refusal.message
            log.info("delivery_refused", source=source.name, code=refusal.code, status=refusal.status, reason=reason)
            raise

    async def _receive(self, source: Source, request: web.BaseRequest) -> bytes:
        """Read a body, and make sure whose it is."""
        _refuse_forms(request)
        check_declared_body(request, _CONTENT_TYPES)
        source.check_headers(request.headers, self._clock())
        try:
            async with self._reading[source.name].take(source.patience_s):
                body = await read_body(request, self._body_seconds)
        except Overloaded:
            if source.patience_s:
                log.warning("delivery_unread", source=source.name, effect="if it was the sender's own, it is lost")
            raise
        source.verify(request.headers, body)
        return body

    async def _take(self, source: Source, headers: Headers, body: bytes, came: float) -> dict[str, object]:
        """Take a delivery that is proven; if that can't be done, note that it is lost."""
        try:
            mapped = self._map(source, headers, body)
            batches = source.batches(headers, body, mapped)
            appended = await self._store(batches, came + source.patience_s) if batches else ()
        except Unavailable as refusal:
            self._note_loss(source, refusal.code, came)
            raise
        except Refusal:
            raise
        except asyncio.CancelledError:  # by a stop, which does not wait for a disk that hangs
            if source.patience_s:
                log.error("delivery_in_doubt", source=source.name)
            raise
        except Exception as error:  # Whatever it was: a sender that never comes back has lost its delivery by it.
            self._note_loss(source, type(error).__name__, came)
            raise
        became = outcome(batches, appended, ignored=0 if batches else 1)
        log.info("delivery_accepted", source=source.name, by=mapped.by, reason=mapped.reason or None, **became)
        return became

    async def _store(self, batches: Sequence[EventBatch], deadline: float) -> Sequence[Appended]:
        async with self._storing.take(deadline - asyncio.get_running_loop().time()):
            return await store_until(self._append, batches, deadline, self._stopping)

    def _note_loss(self, source: Source, reason: str, came: float) -> None:
        if source.patience_s:
            self._losses.note(source.name, reason, asyncio.get_running_loop().time() - came)

    def _map(self, source: Source, headers: Headers, body: bytes) -> Mapped:
        content = parse_json(body)
        source.check_time(content, self._clock())
        return source.map(headers, content)


def _refuse_forms(request: web.BaseRequest) -> None:
    # It is what GitHub chooses unless told otherwise, so its people shall read what to choose instead.
    if request.content_type == _FORM:
        raise UnsupportedMediaType("set the content type of this webhook to application/json, where it is set up")
