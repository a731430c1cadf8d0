"""What a kind of sender is: the shape that each module under `sources` fills in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bot.ingest.mapping import Ignored
from bot.ingest.payload import Payload
from bot.ingest.signatures import Headers, Scheme
from crdt import EventBatch, PipelineEvent

Outcome = PipelineEvent | Sequence[EventBatch] | Ignored
"""An event, or what the sender named each of several, or nothing."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of sender.

    `scheme` makes the proof that its deliveries carry out of a source's secrets. `event_name` reads what the sender
    calls the delivery, which rules and the preset are given as `event`. `id_headers` name one delivery; the first
    that is there counts. `preset` maps a delivery to events; it may raise `Incomplete`. `patience_s` is, for a sender
    that never tries again by itself, the seconds in which it must be answered; 0 for the others.
    `time_in_body` is the key of a signed timestamp in milliseconds.
    """

    name: str
    scheme: Callable[[Sequence[str]], Scheme]
    event_name: Callable[[Headers, Payload], str]
    id_headers: tuple[str, ...]
    preset: Callable[[str, Payload], Outcome]
    patience_s: float = 0.0
    time_in_body: str = ""


def event_header(name: str) -> Callable[[Headers, Payload], str]:
    """Make an `event_name` that reads a header."""
    return lambda headers, _payload: headers.get(name, "")


def event_member(path: str) -> Callable[[Headers, Payload], str]:
    """Make an `event_name` that reads the body."""
    return lambda _headers, payload: payload.text(path)
