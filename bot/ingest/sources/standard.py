"""Any sender that follows the Standard Webhooks specification: `{type, timestamp, data}`. Pure.

`data` that is a native event or a CDEvent is taken as such. Of other data the preset can only guess: the story is its
`id`, the stage its `state` or `status`, and what happened is the `type`. Rules tell more.
"""

from __future__ import annotations

from typing import Final

from bot.ingest.kind import Kind, Outcome, event_member
from bot.ingest.mapping import Ignored, story
from bot.ingest.payload import Payload
from bot.ingest.signatures import StandardWebhooks
from bot.ingest.sources import bearer


def _preset(event: str, payload: Payload) -> Outcome:
    for content in (payload, Payload(payload.at("data"))):
        outcome = bearer.preset(event, content)
        if not isinstance(outcome, Ignored):
            return outcome
    if not event:
        return Ignored("it has no type")
    data = Payload(payload.at("data"))
    story_id = data.first("key", "identifier", "number", "id")
    if not story_id:
        return Ignored(f"the data of {event} has no id: write a rule for it")
    title = data.first("title", "name")
    return story(story_id, "", data.first("stage", "state", "status"), event, title)


KIND: Final = Kind(
    name="standard",
    scheme=StandardWebhooks,
    event_name=event_member("type"),
    id_headers=("webhook-id",),
    preset=_preset,
)
