"""The native format of events: one JSON object, or an array of them. Pure.

An object has the strings `story_id`, `from_stage`, `to_stage` and `pipeline_event`, and may have `id` (two events with
the same id are the same event) and `occurred_at` (RFC 3339 with an offset). An empty array is a batch of no
events: a sender that polls need not special-case a quiet minute.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from bot.ingest.refusals import TooLarge, Unprocessable
from bot.ingest.strict_json import parse_json
from crdt import EventBatch, InvalidEvent, PipelineEvent, validate_event

MAX_EVENTS: Final = 1_000
"""Most events in one request."""
MAX_ID_LENGTH: Final = 200
"""Longest `id`, in code points."""
DEDUPE_PREFIX: Final = "events:"
"""Keeps ids of this format apart from the delivery ids of other senders, which share the store's dedupe keys."""

_REQUIRED: Final = ("story_id", "from_stage", "to_stage", "pipeline_event")
_KNOWN: Final = frozenset({*_REQUIRED, "id", "occurred_at"})
_MAX_QUOTED_NAME: Final = 64
_JSON_NAMES: Final = {dict: "an object", list: "an array", bool: "a boolean", type(None): "null"}

# RFC 3339 section 5.6; `T` and `Z` may be lower case. A second of 60 is a leap second.
_TIMESTAMP: Final = re.compile(
    r"(?P<minute>[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}):(?:[0-5][0-9]|60)(?:\.[0-9]{1,9})?"
    r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)


def parse_events(body: bytes) -> list[EventBatch]:
    """Read the events of a request, each a batch of its own, in the order in which they came.

    Raises:
        Malformed: the body is not the strict JSON that `strict_json` reads.
        TooLarge: there are more than `MAX_EVENTS`.
        Unprocessable: an event is not one that the log takes; `field` says which and where, like `[3].story_id`.
    """
    return read_events(parse_json(body))


def read_events(content: object) -> list[EventBatch]:
    """Read one event, or an array of them, as `parse_events` does.

    Raises:
        TooLarge, Unprocessable: see `parse_events`.
    """
    if not isinstance(content, list):
        return [read_event(content, "")]
    refuse_too_many(len(content))
    return [read_event(member, f"[{index}]") for index, member in enumerate(content)]


def refuse_too_many(count: int) -> None:
    """Bound the events of a request.

    Raises:
        TooLarge: there are more than `MAX_EVENTS`.
    """
    if count > MAX_EVENTS:
        raise TooLarge(f"the request holds {count} events, {MAX_EVENTS} is the limit: send several requests")


def looks_native(members: Mapping[str, object]) -> bool:
    """Tell whether an object was meant as an event: it has at least one of the fields that each has."""
    return any(name in members for name in _REQUIRED)


def read_event(member: object, place: str) -> EventBatch:
    """Make a batch of one event; `place` is where it stands, `""` for a single object.

    Raises:
        Unprocessable: it is no event.
    """
    if not isinstance(member, dict):
        raise Unprocessable(f"an event must be an object, not {_json_name(member)}", field=place or None)
    try:
        return _event_batch(member)
    except InvalidEvent as error:
        field = f"{place}.{error.field}" if place else error.field
        raise Unprocessable(f"{field} {error.problem}; nothing was stored", field=field) from None


def _event_batch(members: Mapping[str, object]) -> EventBatch:
    # Unknown keys come first: a misspelt name is told as what it is, not as a missing field.
    for name in members:
        if name not in _KNOWN:
            raise InvalidEvent(_quotable(name), f"is not a field of an event, which are {', '.join(sorted(_KNOWN))}")
    for name in _REQUIRED:
        if name not in members:
            raise InvalidEvent(name, "is missing")
    texts = {name: _text(name, value) for name, value in members.items()}
    event = PipelineEvent(**{name: text for name, text in texts.items() if name != "id"})
    validate_event(event)
    _validate_occurred_at(event.occurred_at)
    return EventBatch(events=(event,), dedupe_keys=_dedupe_keys(texts.get("id")))


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidEvent(name, f"must be a string, not {_json_name(value)}")
    return value


def _dedupe_keys(event_id: str | None) -> tuple[str, ...]:
    if event_id is None:
        return ()
    if not 1 <= len(event_id) <= MAX_ID_LENGTH:
        raise InvalidEvent("id", f"must have 1 to {MAX_ID_LENGTH} characters, it has {len(event_id)}")
    if not is_storable(event_id):
        raise InvalidEvent("id", "must hold no control characters and no lone surrogates")
    return (DEDUPE_PREFIX + event_id,)


def is_storable(text: str) -> bool:
    """Tell whether a text can be a name: a lone surrogate has no UTF-8 form, and no control character is ever meant."""
    return not any(unicodedata.category(character) in {"Cc", "Cs"} for character in text)


def _validate_occurred_at(occurred_at: str | None) -> None:
    if occurred_at is not None and not is_timestamp(occurred_at):
        raise InvalidEvent(
            "occurred_at",
            "must be an RFC 3339 time with an offset, like 2026-01-31T09:30:00Z or 2026-01-31T10:30:00+01:00",
        )


def is_timestamp(text: str) -> bool:
    """Tell whether a text is a time of RFC 3339 with an offset."""
    found = _TIMESTAMP.fullmatch(text)
    if found is None:
        return False
    try:
        datetime.fromisoformat(found["minute"].upper())
    except ValueError:
        return False
    return True


def _json_name(value: object) -> str:
    return _JSON_NAMES.get(type(value), "a string" if isinstance(value, str) else "a number")


def _quotable(name: str) -> str:
    return name if len(name) <= _MAX_QUOTED_NAME else name[:_MAX_QUOTED_NAME] + "…"
