"""Linear: issues made, moved from state to state, and removed. Pure.

Payloads: linear.app/developers, "Webhooks". A story is the issue's identifier. An update names the state that it left
only by an id, which nothing in the delivery explains, so that `from_stage` is empty.
"""

from __future__ import annotations

from typing import Final

from bot.ingest.kind import Kind, Outcome, event_member
from bot.ingest.mapping import Ignored, story
from bot.ingest.payload import Payload
from bot.ingest.signatures import HexHmac


def _preset(event: str, payload: Payload) -> Outcome:
    action = payload.text("action")
    if event != "Issue":
        return Ignored(f"the preset has nothing for {event or 'a delivery without type'}")
    state, title = payload.text("data.state.name"), payload.text("data.title")
    if action == "create":
        return story(payload.need("data.identifier"), "", state, "issue created", title)
    if action == "remove":
        return story(payload.need("data.identifier"), state, "removed", "issue removed", title)
    if action == "update" and payload.text("updatedFrom.stateId"):
        return story(payload.need("data.identifier"), "", state, "issue moved", title)
    return Ignored(f"an issue {action} that leaves the state as it was")


KIND: Final = Kind(
    name="linear",
    scheme=lambda secrets: HexHmac(secrets, "Linear-Signature"),
    event_name=event_member("type"),
    id_headers=("Linear-Delivery",),
    preset=_preset,
    time_in_body="webhookTimestamp",
)
