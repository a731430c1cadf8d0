r"""Audit lines: how an event is told to the model, and which events the log accepts. Pure.

One event is one line, whatever its fields hold: a line can't be broken, a field can't be closed early, and no `<`
(nor a character that NFKC turns into one) is left that could close the frame around the lines.
`parse_audit_line(audit_line(event)) == event`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from crdt.errors import InvalidEvent
from crdt.marks import SeqRange
from crdt.model import GAP_PIPELINE_EVENT, PipelineEvent, RecordedEvent

MAX_FIELD_LENGTH: Final = 200
"""Longest field of an event, in code points."""

# Bidi controls reorder what a reader sees; tags carry text that no reader sees.
_BIDI_AND_TAGS: Final = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f"
_REFUSED: Final = re.compile(f"[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\u2028\\u2029{_BIDI_AND_TAGS}]")
_LOOKALIKES_OF_LESS_THAN: Final = "\ufe64\uff1c"
_ESCAPED: Final = re.compile(f'[\\\\"<{_LOOKALIKES_OF_LESS_THAN}]|{_REFUSED.pattern}')
_SHORT_ESCAPES: Final = {"\\": "\\\\", '"': '\\"', "<": "\\u003c"}
_UNESCAPED: Final = re.compile(
    r'\\(?:(?P<short>[\\"])|u(?P<four>[0-9a-f]{4})|u\{(?P<hex>(?:10|[0-9a-f])?[0-9a-f]{1,4})\})'
)

_FIELD: Final = r'"((?:[^"\\]|\\.)*)"'
_AUDIT_LINE: Final = re.compile(f"pipeline_event story_id={_FIELD} from={_FIELD} to={_FIELD} event={_FIELD}")

_MIN_LENGTHS: Final = {"story_id": 1, "from_stage": 0, "to_stage": 0, "pipeline_event": 1}


def validate_event(event: PipelineEvent, *, allow_gap: bool = False) -> None:
    """Refuse an event that the log doesn't accept.

    A gap sentinel passes only with `allow_gap`, and may have an empty story.

    Raises:
        InvalidEvent: its `field` names the field that is wrong.
    """
    if _is_plain(event):
        return
    is_gap = event.pipeline_event == GAP_PIPELINE_EVENT
    if is_gap and not allow_gap:
        raise InvalidEvent("pipeline_event", f'must not be "{GAP_PIPELINE_EVENT}", which the log keeps for itself')
    for field, min_length in _MIN_LENGTHS.items():
        _validate_field(field, getattr(event, field), 0 if is_gap else min_length)
    if event.occurred_at is not None:
        _validate_field("occurred_at", event.occurred_at, 0)


def _is_plain(event: PipelineEvent) -> bool:
    """Whether an event is one of the many that are short and hold nothing but printable characters."""
    try:
        whole = "".join((event.story_id, event.from_stage, event.to_stage, event.pipeline_event))
    except TypeError:  # one is not a string
        return False
    # What is refused is not printable: Python goes by the category as well, and by no exceptions.
    return (
        len(whole) <= MAX_FIELD_LENGTH
        and whole.isprintable()
        and len(event.story_id) > 0
        and len(event.pipeline_event) > 0
        and event.pipeline_event != GAP_PIPELINE_EVENT
        and event.occurred_at is None
    )


def _validate_field(field: str, value: object, min_length: int) -> None:
    if not isinstance(value, str):
        raise InvalidEvent(field, f"must be a string, not {type(value).__name__}")
    if not min_length <= len(value) <= MAX_FIELD_LENGTH:
        raise InvalidEvent(field, f"must have {min_length} to {MAX_FIELD_LENGTH} characters, it has {len(value)}")
    refused = _REFUSED.search(value)
    if refused:
        code = ord(refused.group())
        name = unicodedata.name(refused.group(), "a control character or surrogate")
        raise InvalidEvent(field, f"holds U+{code:04X} ({name}), which could forge or hide text: remove it")


def escape(text: str) -> str:
    """Make `text` safe inside a quoted field of an audit line."""
    return _ESCAPED.sub(lambda found: _escape_character(found.group()), text)


def _escape_character(character: str) -> str:
    return _SHORT_ESCAPES.get(character) or f"\\u{{{ord(character):x}}}"


def unescape(text: str) -> str:
    """Undo `escape`."""
    return _UNESCAPED.sub(lambda found: found["short"] or chr(int(found["four"] or found["hex"], 16)), text)


def audit_line(event: PipelineEvent | RecordedEvent) -> str:
    """Render an event, or a gap sentinel, as the one line that the model reads."""
    if event.pipeline_event == GAP_PIPELINE_EVENT:
        return f"events between {escape(event.from_stage)} and {escape(event.to_stage)} were dropped"
    fields: tuple[str, ...] = (event.story_id, event.from_stage, event.to_stage, event.pipeline_event)
    if _ESCAPED.search("".join(fields)):
        fields = tuple(map(escape, fields))
    story_id, from_stage, to_stage, happened = fields
    # Joined: what is derived from `str`, as an enum's members may be, can have a format of its own.
    told = ('pipeline_event story_id="', story_id, '" from="', from_stage, '" to="', to_stage)
    return "".join((*told, '" event="', happened, '"'))


def parse_audit_line(line: str) -> PipelineEvent | None:
    """Read an audit line back into its event; `None` for gap and fold lines and for anything else."""
    found = _AUDIT_LINE.fullmatch(line)
    return PipelineEvent(*(unescape(field) for field in found.groups())) if found else None


def gap_line(dropped: SeqRange) -> str:
    """Tell that retention took events before the session saw them."""
    return f"events between {dropped.first} and {dropped.last} were dropped"


FOLDED: Final = re.compile(r"(?P<count>\d+) earlier events (?:\(seq (?P<first>\d+)-(?P<last>\d+)\) )?omitted")
"""What `fold_line` and `count_line` write."""


def count_line(events: int) -> str:
    """Tell that so many events are not shown, whatever their seqs were."""
    return f"{events} earlier events omitted"


def fold_line(folded: SeqRange) -> str:
    """Tell that a turn had more events than it may show."""
    return f"{len(folded)} earlier events (seq {folded.first}-{folded.last}) omitted"
