"""The values that the store takes and gives: frozen dataclasses, no behaviour, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

GAP_PIPELINE_EVENT: Final = "__gap__"
"""`pipeline_event` of a gap sentinel: an entry that stands for events that were lost before they got a seq."""

SINGLE_SLED: Final = "single-sled"
"""The scope of a session that is told only the events that this node recorded."""

Role = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True)
class PipelineEvent:
    """A fact about the pipeline, as it is handed to the log.

    `story_id` and `pipeline_event` have 1-200 code points, the stages 0-200. `occurred_at` is the sender's own
    time (RFC 3339), kept as it came; the order of the log is the order of arrival.
    """

    story_id: str
    from_stage: str
    to_stage: str
    pipeline_event: str
    occurred_at: str | None = None


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An event as it stands in the log. `event_seq` starts at 1 and has no holes; `recorded_at` is RFC 3339 in UTC."""

    sled_id: str
    event_seq: int
    story_id: str
    from_stage: str
    to_stage: str
    pipeline_event: str
    recorded_at: str
    occurred_at: str | None = None


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events that stand or fall together in deduplication.

    If any of `dedupe_keys` is already known, the whole batch is a duplicate and nothing of it is stored;
    otherwise all events are stored and all keys remembered.
    """

    events: tuple[PipelineEvent, ...]
    dedupe_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of one `EventBatch`: the seqs its events got, or `duplicate` with no seqs."""

    seqs: tuple[int, ...]
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class LlmSessionView:
    """A session as it is read. `high_water` maps a sled's id to the highest seq already put into the transcript."""

    session_id: str
    persona_name: str
    scope: str
    high_water: dict[str, int]


@dataclass(frozen=True, slots=True)
class Message:
    """Something a person said in a room, as a row of the inbox.

    `key` is the Matrix event id. `context` messages wait to be folded into the next turn and never start one.
    `details` is opaque to the store (JSON of the bot's own: thread, mentions, time of origin). `turn_key` is set by
    the store once a turn has taken the message: the key of that turn.
    """

    key: str
    session_id: str
    sender: str
    text: str
    context: bool = False
    details: str = "{}"
    turn_key: str | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """A person's change of a message: the new text, applied while no turn has frozen the message."""

    key: str
    sender: str
    text: str


@dataclass(frozen=True, slots=True)
class TakenBack:
    """A message that was taken back after a turn had taken it: where its text stands in the transcript.

    It is number `place` (from 0) of the `count` messages of the turn's text or, with `context`, of its context.
    """

    key: str
    turn_key: str
    context: bool
    place: int
    count: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """One outgoing Matrix event, as a row of the outbox.

    `delivery_id` is the Matrix transaction id; `content` is the event's content as JSON text, opaque to the store.
    `attempts` is above 0 once a send may have been begun, `first_attempt_at` is since when (Unix seconds).
    """

    delivery_id: str
    session_id: str
    content: str
    event_type: str = "m.room.message"
    attempts: int = 0
    first_attempt_at: float | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One message (or a burst) in, one reply out.

    `lines` are the audit lines injected by this turn, `text` what the person said, `context` what others had said
    before. `attempt` is 1 the first time the turn is begun and rises by one with each further begin. `reply` is
    `None` until the turn is complete.
    """

    session_id: str
    key: str
    text: str
    lines: list[str] = field(default_factory=list)
    context: list[str] = field(default_factory=list)
    attempt: int = 1
    reply: str | None = None
    failed: bool = False


@dataclass(frozen=True, slots=True)
class TranscriptEntry:
    """One entry of a session's transcript. Roles alternate; a user entry carries the lines that its turn injected."""

    role: Role
    key: str
    text: str
    lines: list[str] = field(default_factory=list)
    context: list[str] = field(default_factory=list)
    failed: bool = False
