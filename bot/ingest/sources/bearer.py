"""Any sender that can set an `Authorization` header: native events or a CDEvent as they are, else by rules. Pure."""

from __future__ import annotations

from typing import Final

from bot.ingest import cdevents, native
from bot.ingest.kind import Kind, Outcome, event_member
from bot.ingest.mapping import Ignored
from bot.ingest.payload import Payload
from bot.ingest.signatures import Bearer


def preset(event: str, payload: Payload) -> Outcome:
    """Take native events and CDEvents."""
    content = payload.value
    if cdevents.is_cdevent(content):
        return cdevents.read_cdevent(content, "")
    members = content if isinstance(content, list) else [content]
    if any(isinstance(member, dict) and native.looks_native(member) for member in members):
        return native.read_events(content)
    return Ignored("it is neither a native event nor a CDEvent: write a rule for it")


KIND: Final = Kind(
    name="bearer",
    scheme=Bearer,
    event_name=event_member("type"),
    id_headers=("Idempotency-Key",),
    preset=preset,
)
