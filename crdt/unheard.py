"""Lines that no model has answered yet: those of the turns that failed since the last reply. Pure.

The marks have passed their events, so nothing else will tell them: whoever leaves out entries of a transcript carries
their unheard lines along, in front of what stays, or says how many there were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from crdt.audit import FOLDED, count_line, parse_audit_line
from crdt.model import TranscriptEntry

MAX_CARRIED_LINES: Final = 500
"""Lines that are carried over a cut; of more, only the newest, and the number of the others."""


def newest_from(entries: Sequence[TranscriptEntry], start: int) -> list[TranscriptEntry]:
    """Take the entries from `start` on, a user's first; it brings the unheard lines of those that are left out."""
    kept = list(entries[start:])
    lost = [line for entry in entries[_first_unheard(entries) : start] for line in entry.lines]
    if lost and kept:
        kept[0] = replace(kept[0], lines=[*fold_lines(lost, MAX_CARRIED_LINES), *kept[0].lines])
    return kept


def _first_unheard(entries: Sequence[TranscriptEntry]) -> int:
    replies = (place for place, entry in enumerate(entries) if entry.role == "assistant" and not entry.failed)
    return max(replies, default=-1) + 1


def fold_lines(lines: Sequence[str], keep: int) -> list[str]:
    """Keep the newest `keep` lines. Of those before, the ones that tell of a gap stay; one line counts the others."""
    border = max(0, len(lines) - keep)
    gaps: list[str] = []
    events = 0
    for line in lines[:border]:
        if parse_audit_line(line) is not None:
            events += 1
        elif folded := FOLDED.fullmatch(line):
            events += int(folded["count"])
        else:
            gaps.append(line)
    told = [count_line(events)] if events else []
    return [*gaps, *told, *lines[border:]]
