"""Jira Cloud: issues made, moved from status to status, and deleted. Pure.

Payloads: developer.atlassian.com, "Webhooks" of the Jira Cloud platform. A story is the issue's key.
"""

from __future__ import annotations

from typing import Final

from bot.ingest.kind import Kind, Outcome, event_member
from bot.ingest.mapping import Ignored, story
from bot.ingest.payload import Payload
from bot.ingest.signatures import HexHmac


def _preset(event: str, payload: Payload) -> Outcome:
    status, title = payload.text("issue.fields.status.name"), payload.text("issue.fields.summary")
    if event == "jira:issue_created":
        return story(payload.need("issue.key"), "", status, "issue created", title)
    if event == "jira:issue_deleted":
        return story(payload.need("issue.key"), status, "deleted", "issue deleted", title)
    if event != "jira:issue_updated":
        return Ignored(f"the preset has nothing for {event or 'a delivery without webhookEvent'}")
    for item in payload.each("changelog.items"):
        if item.text("field") == "status":
            return story(
                payload.need("issue.key"), item.text("fromString"), item.text("toString"), "issue moved", title
            )
    return Ignored("an issue update that leaves the status as it was")


KIND: Final = Kind(
    name="jira",
    scheme=lambda secrets: HexHmac(secrets, "X-Hub-Signature", "sha256="),
    event_name=event_member("webhookEvent"),
    id_headers=("X-Atlassian-Webhook-Identifier",),
    preset=_preset,
)
