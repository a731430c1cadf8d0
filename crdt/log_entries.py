"""Events as they stand in the log's documents, and the newest of them as they were handed in."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring as quoted

from crdt.model import PipelineEvent, RecordedEvent

RECENT = 512
"""Events that are kept as they were handed in: more than a turn shows, so that a turn need not decode them."""


def document_name(sled_id: str, segment: int) -> str:
    """Name the document of a segment."""
    return f"log/{sled_id}/{segment}"


def encode_event(seq: int, at_ms: int, event: PipelineEvent) -> str:
    """Encode an event as it stands in the array: a JSON list, the sender's own time only if there is one."""
    texts = (
        f"{quoted(event.story_id)},{quoted(event.from_stage)},{quoted(event.to_stage)},{quoted(event.pipeline_event)}"
    )
    occurred_at = "" if event.occurred_at is None else f",{quoted(event.occurred_at)}"
    return f"[{seq},{at_ms},{texts}{occurred_at}]"


def decode_event(sled_id: str, text: str) -> RecordedEvent:
    """Read back what `encode_event` wrote."""
    seq, at_ms, story_id, from_stage, to_stage, pipeline_event, *rest = json.loads(text)
    occurred_at = rest[0] if rest else None
    return RecordedEvent(sled_id, seq, story_id, from_stage, to_stage, pipeline_event, _rfc3339(at_ms), occurred_at)


@lru_cache(maxsize=1024)
def _rfc3339(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class RecentEvents:
    """The newest committed events of one sled, as they would be decoded."""

    def __init__(self, sled_id: str) -> None:
        self._sled_id = sled_id
        self._events: deque[tuple[int, PipelineEvent]] = deque(maxlen=RECENT)
        self._head = 0

    def extend(self, head: int, at_ms: int, events: Sequence[PipelineEvent]) -> None:
        """Add what was committed; `head` is the seq of the last of them."""
        if head != self._head + len(events):
            self._events.clear()
        self._events.extend([(at_ms, event) for event in events[-RECENT:]])
        self._head = head

    def given(self, first: int, last: int) -> list[PipelineEvent] | None:
        """The events with seqs `first` to `last`, as they were handed in; `None` when they are not all here."""
        entries = self._entries(first, last)
        return None if entries is None else [event for _, event in entries]

    def read(self, first: int, last: int) -> list[RecordedEvent] | None:
        """The same, as they are recorded."""
        entries = self._entries(first, last)
        return None if entries is None else [self._recorded(seq, *entry) for seq, entry in enumerate(entries, first)]

    def _entries(self, first: int, last: int) -> list[tuple[int, PipelineEvent]] | None:
        oldest = self._head - len(self._events) + 1
        if first < oldest or last > self._head:
            return None
        return [self._events[seq - oldest] for seq in range(first, last + 1)]

    def _recorded(self, seq: int, at_ms: int, event: PipelineEvent) -> RecordedEvent:
        fields = (event.story_id, event.from_stage, event.to_stage, event.pipeline_event)
        return RecordedEvent(self._sled_id, seq, *fields, _rfc3339(at_ms), event.occurred_at)
