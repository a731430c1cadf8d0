"""Fetches what a limited timeline leaves out, so that a busy room or a long downtime loses no message.

A sync carries at most 100 events of a room. When there were more, the rest is read here, page by page from the newest
backwards, until the place where the last sync ended or where the bot's stay in the room began.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import structlog

from bot.matrix.errors import Forbidden, NotInRoom, Refused, Unreachable
from bot.matrix.timeline import WORDLESS, own_arrival
from bot.matrix.wire import Wire

log = structlog.get_logger(__name__)

Events = list[dict[str, Any]]

MOST_MESSAGES: Final = 1_000
"""Of one room in one sync; older ones are left out, and logged."""
PAGE_EVENTS: Final = 100
MOST_PAGES: Final = 100
"""Pages may be empty and still be followed by others; this ends a walk that a broken server never would."""
MOST_FAILURES: Final = 10
"""In a row, for one room, while syncs succeed. One room's broken history must not keep all rooms silent for ever."""

_FILTER: Final = json.dumps(
    {
        "types": ["m.room.message", "m.room.encrypted", "m.room.redaction", "m.room.member", *WORDLESS],
        "lazy_load_members": True,
    }
)


class Backfill:
    """Fills the gaps before limited timelines and counts, by room, how often that has failed in a row.

    A step that fails is repeated as a whole; so the pages that were read are kept until one succeeds. Else many gaps
    would never be filled from a server that fails at some requests.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._failures: dict[str, int] = {}
        self._pages: dict[tuple[str, str, str | None], tuple[Events, str | None]] = {}

    def step_ended(self) -> None:
        """The step has succeeded, and will not be repeated."""
        self._pages.clear()

    async def fill(self, room_id: str, timeline: Events, prev_batch: str, since: str) -> Events:
        """Return `timeline` with the missing earlier events before it, in order.

        Raises what passes by itself (`Unreachable`, `RateLimited`) and `LoggedOut`: the caller repeats the sync from
        its old token. What a repetition would not cure is logged, and the timeline returned as it is.
        """
        try:
            whole = await self._walk(room_id, timeline, prev_batch, since)
        except Unreachable as error:
            failures = self._failures.get(room_id, 0) + 1
            self._failures[room_id] = failures
            if failures < MOST_FAILURES:
                raise
            log.error("backfill_gave_up", room=room_id, since=since, failures=failures, problem=error.problem)
            whole = timeline
        except (Forbidden, NotInRoom, Refused) as error:
            log.error("backfill_refused", room=room_id, since=since, problem=str(error))
            whole = timeline
        self._failures.pop(room_id, None)
        return whole

    async def _walk(self, room_id: str, timeline: Events, prev_batch: str, since: str) -> Events:
        whole, token = timeline, prev_batch
        for _ in range(MOST_PAGES):
            arrival, invited_earlier = own_arrival(whole, self._wire.user_id)
            if arrival is not None:
                return whole
            if _messages(whole) - _messages(timeline) + PAGE_EVENTS > MOST_MESSAGES:
                break
            # A room that was joined long after the invitation has a past that counts before the last sync's end.
            page, end = await self._page(room_id, token, None if invited_earlier else since)
            whole = list(_unknown(page, whole)) + whole
            if end is None or end == token:
                log.info("backfilled", room=room_id, messages=_messages(whole) - _messages(timeline))
                return whole
            token = end
        # How many there are beyond is not known: that would take reading them all.
        log.warning("backfill_truncated", room=room_id, since=since, kept=_messages(whole), oldest=_id(whole))
        return whole

    async def _page(self, room_id: str, start: str, until: str | None) -> tuple[Events, str | None]:
        """One page, oldest event first, and where the next one starts (`None`: there is none)."""
        known = self._pages.get((room_id, start, until))
        if known is not None:
            return known
        query = {"dir": "b", "from": start, "limit": str(PAGE_EVENTS), "filter": _FILTER}
        if until is not None:
            query["to"] = until
        answer = await self._wire.get("rooms", room_id, "messages", query=query, room=room_id)
        chunk, end = self._wire.list_in(answer, "chunk"), answer.get("end")
        events = [event for event in reversed(chunk) if isinstance(event, dict)]
        page = self._pages[room_id, start, until] = events, end if isinstance(end, str) else None
        return page


def _messages(events: Events) -> int:
    return sum(event.get("type") in ("m.room.message", "m.room.encrypted") for event in events)


def _id(events: Events) -> object:
    return events[0].get("event_id") if events else None


def _unknown(page: Events, later: Events) -> Iterator[dict[str, Any]]:
    known = {event_id for event in later if isinstance(event_id := event.get("event_id"), str)}
    return (event for event in page if not (isinstance(event_id := event.get("event_id"), str) and event_id in known))
