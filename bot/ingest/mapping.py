"""What becomes of one delivery: the values that rules and presets give. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bot.ingest.clean import clean_event, clean_text
from crdt import InvalidEvent, PipelineEvent, validate_event

_MAX_REASON: Final = 120


@dataclass(frozen=True, slots=True)
class Ignored:
    """A delivery that is no event, and why: a phrase for the operator's log."""

    reason: str


@dataclass(frozen=True, slots=True)
class Mapped:
    """What `by` (a rule, or the preset) made of a delivery: events, or with none of them the `reason`."""

    by: str
    events: tuple[PipelineEvent, ...] = ()
    reason: str = ""


def story(story_id: str, from_stage: str, to_stage: str, *happened: str) -> PipelineEvent:
    """Make an event; `happened` are what happened and, if there is one, a title, joined as `what: title`."""
    return PipelineEvent(story_id, from_stage, to_stage, ": ".join(part for part in happened if part))


def mapped(by: str, outcome: PipelineEvent | tuple[PipelineEvent, ...] | Ignored) -> Mapped:
    """Clean what a rule or a preset gave; events that the log would refuse are none."""
    if isinstance(outcome, Ignored):
        return Mapped(by, reason=clean_text(outcome.reason)[:_MAX_REASON])
    events = tuple(map(clean_event, outcome if isinstance(outcome, tuple) else (outcome,)))
    try:
        for event in events:
            validate_event(event)
    except InvalidEvent as error:
        return Mapped(by, reason=f"{error.field} {error.problem}")
    return Mapped(by, events, reason="" if events else "it holds no events")
