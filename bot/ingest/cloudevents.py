"""CloudEvents 1.0.2 over HTTP: binary, structured and batch mode, with a native event or a CDEvent as data. Pure.

Read by hand: what is missing must be refused, never made up, since `source` and `id` are what a sender's repetition
is known by (CloudEvents specification, section 3.1.1).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final
from urllib.parse import unquote

from multidict import CIMultiDict, CIMultiDictProxy

from bot.ingest import cdevents, native
from bot.ingest.refusals import Malformed, Unprocessable
from bot.ingest.strict_json import parse_json
from crdt import EventBatch

Headers = CIMultiDict[str] | CIMultiDictProxy[str]

STRUCTURED: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"

_PREFIX: Final = "ce-"
_REQUIRED: Final = ("specversion", "id", "source", "type")
_VERSION: Final = "1.0"
# A quoted string of RFC 9110, section 5.6.4.
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_ESCAPED: Final = re.compile(r"\\(.)")
_MAX_ATTRIBUTE: Final = 2_000
"""Longest attribute, in code points: far over any id in use, so that none has to be cut."""


@dataclass(frozen=True, slots=True)
class _CloudEvent:
    """The attributes that matter here, and the data, parsed."""

    id: str
    source: str
    type: str
    time: str | None
    data: object


class _WrongAttribute(Exception):
    """An attribute is missing or not what the specification allows."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name = name
        self.problem = problem


def is_binary(headers: Headers) -> bool:
    """Tell whether a request is meant as a CloudEvent in binary mode: any required attribute is among its headers."""
    return any(_PREFIX + name in headers for name in _REQUIRED)


def parse_binary(headers: Headers, body: bytes) -> list[EventBatch]:
    """Read an event whose attributes are headers and whose data is the body.

    Raises:
        Malformed: an attribute is missing or wrong, or the body is not strict JSON.
        Unprocessable: the data is neither a native event nor a CDEvent.
    """
    attributes: dict[str, object] = {}
    try:
        for name in (*_REQUIRED, "time"):
            values = headers.getall(_PREFIX + name, [])
            if len(values) > 1:
                raise _WrongAttribute(name, "is given twice")
            if values:
                attributes[name] = _header_text(name, values[0])
        event = _read_attributes(attributes, data=None)
    except _WrongAttribute as error:
        raise Malformed(f"the header {_PREFIX}{error}; nothing was stored", field=_PREFIX + error.name) from None
    return [_batch(replace(event, data=parse_json(body)), "")]


def parse_structured(body: bytes) -> list[EventBatch]:
    """Read one event as a JSON object.

    Raises:
        Malformed, Unprocessable: see `parse_binary`.
    """
    content = parse_json(body)
    try:
        return [_batch(_read_envelope(content), "")]
    except _WrongAttribute as error:
        raise Malformed(f"{error}; nothing was stored", field=error.name or None) from None


def parse_batch(body: bytes) -> list[EventBatch]:
    """Read an array of events.

    Raises:
        Malformed: the body is not strict JSON, or no array.
        TooLarge: there are too many.
        Unprocessable: one of them is wrong; `field` says which and where, like `[1].id`.
    """
    content = parse_json(body)
    if not isinstance(content, list):
        raise Malformed("a batch of CloudEvents must be an array")
    native.refuse_too_many(len(content))
    batches = []
    for index, member in enumerate(content):
        place = f"[{index}]"
        try:
            batches.append(_batch(_read_envelope(member), place))
        except _WrongAttribute as error:
            field = f"{place}.{error.name}" if error.name else place
            raise Unprocessable(f"{field} {error.problem}; nothing was stored", field=field) from None
    return batches


def _header_text(name: str, value: str) -> str:
    """Undo the quoting and the percent-encoding of the HTTP binding (section 3.1.3.2)."""
    text = value.strip()
    if _QUOTED.fullmatch(text):
        text = _ESCAPED.sub(r"\1", text[1:-1])
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise _WrongAttribute(name, "is not percent-encoded UTF-8") from None


def _read_envelope(content: object) -> _CloudEvent:
    if not isinstance(content, dict):
        raise _WrongAttribute("", "must be an object")
    return _read_attributes(content, data=_data(content))


def _read_attributes(attributes: Mapping[str, object], data: object) -> _CloudEvent:
    values = {name: _attribute(attributes, name) for name in _REQUIRED}
    if values["specversion"] != _VERSION:
        raise _WrongAttribute("specversion", f'must be "{_VERSION}"')
    time = attributes.get("time")
    if time is not None and not (isinstance(time, str) and native.is_timestamp(time)):
        raise _WrongAttribute("time", "must be an RFC 3339 time with an offset")
    return _CloudEvent(values["id"], values["source"], values["type"], time, data)


def _attribute(attributes: Mapping[str, object], name: str) -> str:
    value = attributes.get(name)
    if value is None:
        raise _WrongAttribute(name, "is missing")
    if not isinstance(value, str) or not 1 <= len(value) <= _MAX_ATTRIBUTE:
        raise _WrongAttribute(name, f"must be a string of 1 to {_MAX_ATTRIBUTE} characters")
    if not native.is_storable(value):
        raise _WrongAttribute(name, "must hold no control characters and no lone surrogates")
    return value


def _data(content: Mapping[str, object]) -> object:
    encoded = content.get("data_base64")
    if encoded is None:
        return content.get("data")
    if "data" in content or not isinstance(encoded, str):
        raise _WrongAttribute("data_base64", "must be a string, and not together with data")
    try:
        return parse_json(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError, Malformed):
        raise _WrongAttribute("data_base64", "is not the base64 of JSON") from None


def _batch(event: _CloudEvent, place: str) -> EventBatch:
    """Make a batch of one event out of its data; an id of the data's own is a second name of the same event."""
    inside = f"{place}.data" if place else "data"
    if event.type.startswith("dev.cdevents") or cdevents.is_cdevent(event.data):
        batch = EventBatch((cdevents.read_cdevent(event.data, inside),))
    elif isinstance(event.data, dict):
        batch = native.read_event(event.data, inside)
    else:
        raise Unprocessable(f"{inside} must be a native event or a CDEvent; nothing was stored", field=inside)
    (told,) = batch.events
    if told.occurred_at is None:
        batch = replace(batch, events=(replace(told, occurred_at=event.time),))
    return replace(batch, dedupe_keys=(_dedupe_key(event), *batch.dedupe_keys))


def _dedupe_key(event: _CloudEvent) -> str:
    name = json.dumps([event.source, event.id]).encode()
    return f"cloudevents:{sha256(name).hexdigest()}"
