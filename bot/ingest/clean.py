"""Makes texts from senders fit the log. Pure.

A sender's title or branch name is somebody's free text, and its sender can't be asked to write it otherwise: what
the log refuses becomes a space, what is too long is cut. Native events are refused instead, their sender can mend them.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final

from crdt import PipelineEvent

MAX_LENGTH: Final = 200
"""Longest field of an event, in code points; the log's own limit."""

_ELLIPSIS: Final = "…"
_DIGEST_LENGTH: Final = 8
# The log's list of what can forge or hide text: controls, surrogates, line separators, bidi controls, tags.
_UNFIT: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]"
)


def clean_event(event: PipelineEvent) -> PipelineEvent:
    """Make an event whose fields the log accepts, unless its story or its name are empty."""
    return PipelineEvent(
        story_id=clean_name(event.story_id),
        from_stage=clean_text(event.from_stage),
        to_stage=clean_text(event.to_stage),
        pipeline_event=clean_text(event.pipeline_event),
        occurred_at=event.occurred_at,
    )


def clean_text(text: str) -> str:
    """Put a text on one line of at most `MAX_LENGTH` visible characters."""
    line = _one_line(text)
    return line if len(line) <= MAX_LENGTH else line[: MAX_LENGTH - 1] + _ELLIPSIS


def clean_name(name: str) -> str:
    """Do as `clean_text`, but keep long names apart that begin alike: a digest takes the place of what is cut."""
    line = _one_line(name)
    if len(line) <= MAX_LENGTH:
        return line
    digest = sha256(line.encode()).hexdigest()[:_DIGEST_LENGTH]
    return line[: MAX_LENGTH - 1 - _DIGEST_LENGTH] + _ELLIPSIS + digest


def _one_line(text: str) -> str:
    return " ".join(_UNFIT.sub(" ", text).split())
