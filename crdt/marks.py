"""High-water marks: which events a session has not seen, and how marks advance and merge. Pure.

A session's marks are `{sled: seq}`. Each writing sled keeps its own copy of them, and the marks that count are the
join of all copies: the highest seq per sled. The join is associative, commutative and idempotent, so replicas may
merge in any order, any number of times, and no mark ever falls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Marks = dict[str, int]


@dataclass(frozen=True, slots=True)
class SeqRange:
    """An unbroken run of seqs, both ends included."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Unseen:
    """What one sled's log holds past a mark: `dropped` by retention, `folded` for length, and `shown` one by one."""

    dropped: SeqRange | None
    folded: SeqRange | None
    shown: SeqRange | None

    @property
    def mark(self) -> int | None:
        """The mark after all of it has been told; `None` when there is nothing to tell."""
        newest = self.shown or self.folded or self.dropped
        return newest.last if newest else None


def join(copies: Iterable[Mapping[str, int]]) -> Marks:
    """Merge copies of a session's marks: the maximum per sled."""
    joined: Marks = {}
    for copy in copies:
        for sled, seq in copy.items():
            joined[sled] = max(seq, joined.get(sled, 0))
    return joined


def advance(marks: Mapping[str, int], sled_id: str, seq: int) -> Marks:
    """Raise one sled's mark to `seq`; a mark that stands higher already stays."""
    return join((marks, {sled_id: seq}))


def unseen(mark: int, *, oldest: int, head: int, max_shown: int | None = None) -> Unseen:
    """Split the seqs past `mark` by arithmetic, whatever their number.

    `oldest` is the first seq that is still kept, `head` the newest committed one (`oldest - 1` when the log is
    empty). With `max_shown`, only that many of the newest are shown and what lies between is folded.
    """
    dropped = SeqRange(mark + 1, oldest - 1) if mark + 1 < oldest else None
    first = max(mark + 1, oldest)
    if first > head:
        return Unseen(dropped, None, None)
    first_shown = first if max_shown is None else max(first, head - max_shown + 1)
    folded = SeqRange(first, first_shown - 1) if first < first_shown else None
    shown = SeqRange(first_shown, head) if first_shown <= head else None
    return Unseen(dropped, folded, shown)
