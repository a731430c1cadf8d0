"""What becomes of one delivery: the values that rules and presets give. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bot.ingest.clean import clean_event, clean_text
from crdt import EventBatch, InvalidEvent, PipelineEvent, validate_event

_MAX_REASON: Final = 120


@dataclass(frozen=True, slots=True)
class Ignored:
    """A delivery that is no event, and why: a phrase for the operator's log."""

    reason: str


@dataclass(frozen=True, slots=True)
class Mapped:
    """What `by` (a rule, or the preset) made of a delivery: batches, or with none of them the `reason`.

    A batch with dedupe keys of its own holds an event that the sender has named.
    """

    by: str
    batches: tuple[EventBatch, ...] = ()
    reason: str = ""

    @property
    def events(self) -> list[PipelineEvent]:
        """The events of all batches."""
        return [event for batch in self.batches for event in batch.events]


def story(story_id: str, from_stage: str, to_stage: str, *happened: str) -> PipelineEvent:
    """Make an event; `happened` are what happened and, if there is one, a title, joined as `what: title`."""
    return PipelineEvent(story_id, from_stage, to_stage, ": ".join(part for part in happened if part))


def mapped(by: str, outcome: PipelineEvent | Sequence[EventBatch] | Ignored) -> Mapped:
    """Clean what a rule or a preset gave; events that the log would refuse are none."""
    if isinstance(outcome, Ignored):
        return Mapped(by, reason=clean_text(outcome.reason)[:_MAX_REASON])
    given = (EventBatch((outcome,)),) if isinstance(outcome, PipelineEvent) else outcome
    batches = tuple(EventBatch(tuple(map(clean_event, batch.events)), batch.dedupe_keys) for batch in given)
    try:
        for batch in batches:
            for event in batch.events:
                validate_event(event)
    except InvalidEvent as error:
        return Mapped(by, reason=f"{error.field} {error.problem}")
    return Mapped(by, batches, reason="" if batches else "it holds no events")
