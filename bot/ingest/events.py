"""`POST /v1/events`, top to bottom: who asks, what they send, what became of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

import structlog
from aiohttp import web

from bot.ingest import native
from bot.ingest.bearer import BearerTokens
from bot.ingest.body import check_declared_body, read_body
from bot.ingest.refusals import Overloaded, Refusal, StorageFull, StorageUnavailable, Unprocessable
from crdt import Appended, EventBatch, InvalidEvent, StoreClosed, StoreFull, StoreUnavailable

log = structlog.get_logger(__name__)

Append = Callable[[Sequence[EventBatch]], Awaitable[Sequence[Appended]]]
"""Stores all batches in one commit, or none; returns after the commit."""

MAX_BODIES_IN_FLIGHT: Final = 64
"""Bodies that are being read or stored at one time: bounds what senders make us hold to 64 MiB of raw bytes."""

_FORMATS: Final[Mapping[str, Callable[[bytes], list[EventBatch]]]] = MappingProxyType(
    {"application/json": native.parse_events}
)
_CONTENT_TYPES: Final = frozenset(_FORMATS)


class EventsEndpoint:
    """Takes events from the holders of a token into the log.

    What is cheap and tells strangers nothing comes first: the token before anything else, the headers
    before the body, the body before its meaning. Nothing is stored unless all of it is accepted.
    """

    def __init__(self, append: Append, tokens: BearerTokens, body_seconds: float) -> None:
        self._append = append
        self._tokens = tokens
        self._body_seconds = body_seconds
        self._bodies_in_flight = 0

    async def post(self, request: web.BaseRequest) -> dict[str, object]:
        """Store the events of a request and say what became of them: the JSON of the 202.

        Raises:
            Refusal: nothing was stored.
        """
        try:
            self._tokens.check(request.headers)
            check_declared_body(request, _CONTENT_TYPES)
            with self._slot():
                body = await read_body(request, self._body_seconds)
                batches = _FORMATS[request.content_type](body)
                appended = await self._store(batches)
        except Refusal as refusal:
            log.info("events_refused", code=refusal.code, status=refusal.status)
            raise
        return _outcome(batches, appended)

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if self._bodies_in_flight >= MAX_BODIES_IN_FLIGHT:
            raise Overloaded
        self._bodies_in_flight += 1
        try:
            yield
        finally:
            self._bodies_in_flight -= 1

    async def _store(self, batches: Sequence[EventBatch]) -> Sequence[Appended]:
        if not batches:
            return ()
        try:
            return await self._append(batches)
        except InvalidEvent as error:
            raise Unprocessable(f"{error.field} {error.problem}; nothing was stored", field=error.field) from error
        except StoreFull as error:
            raise StorageFull from error
        except (StoreUnavailable, StoreClosed) as error:
            raise StorageUnavailable from error


def _outcome(batches: Sequence[EventBatch], appended: Sequence[Appended]) -> dict[str, object]:
    seqs = [seq for stored in appended for seq in stored.seqs]
    duplicates = sum(len(batch.events) for batch, stored in zip(batches, appended, strict=True) if stored.duplicate)
    outcome: dict[str, object] = {
        "accepted": len(seqs),
        "duplicates": duplicates,
        "ignored": 0,
        "first_seq": min(seqs, default=None),
        "last_seq": max(seqs, default=None),
    }
    log.info("events_accepted", **outcome)
    return outcome
