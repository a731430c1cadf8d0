"""Segments: the runs of a fixed number of events that a log consists of, and how long they are kept."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace

from crdt.documents import Document
from crdt.schema import checksum


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of the log. `sealed_at` (Unix ms of its newest event) is `None` while it is the one that grows.

    The row of a segment is written when it begins and when it is full, not with each event: meanwhile `events` is what
    its document holds.
    """

    number: int
    first_seq: int
    events: int
    sealed_at: int | None = None

    @property
    def last_seq(self) -> int:
        """The newest seq in it; `first_seq - 1` when it is empty."""
        return self.first_seq + self.events - 1


def counted(segment: Segment, document: Document) -> Segment:
    """A segment that was read from its row, with the number of events that its document holds."""
    return segment if segment.sealed_at is not None else replace(segment, events=document.length("events"))


@dataclass(frozen=True, slots=True)
class Retention:
    """How much the log keeps at least. With both, only what both let go is dropped; with neither, nothing is."""

    events: int | None = None
    days: float | None = None

    def allows_drop(self, segment: Segment, head: int, now_ms: int) -> bool:
        """Tell whether a sealed segment lies wholly beyond what is kept."""
        if segment.sealed_at is None or (self.events is None and self.days is None):
            return False
        beyond_count = self.events is None or head - segment.last_seq >= self.events
        beyond_age = self.days is None or now_ms - segment.sealed_at > self.days * 86_400_000
        return beyond_count and beyond_age


def read_segments(connection: sqlite3.Connection, sled_id: str) -> list[Segment]:
    """Read which segments a sled's log has, oldest first; the newest must be `counted`.

    Raises:
        ValueError: a row is missing or was altered.
    """
    rows = connection.execute(
        "SELECT segment, first_seq, events, sealed_at, checksum FROM segments WHERE sled_id = ? ORDER BY segment",
        (sled_id,),
    ).fetchall()
    segments: list[Segment] = []
    for *fields, stored_checksum in rows:
        segment = Segment(*fields)
        if stored_checksum != _segment_checksum(sled_id, segment):
            raise ValueError(f"the row of log segment {segment.number} was altered")
        if segments and segment.first_seq != segments[-1].last_seq + 1:
            raise ValueError(f"the log segment before {segment.number} is missing")
        segments.append(segment)
    names = (f"log/{sled_id}/", f"log/{sled_id}0")  # "0" is what follows "/"
    (documents,) = connection.execute("SELECT count(*) FROM documents WHERE name > ? AND name < ?", names).fetchone()
    if documents != len(segments):
        raise ValueError(f"the log has {documents} documents, but rows of {len(segments)} segments")
    return segments


def write_segment(connection: sqlite3.Connection, sled_id: str, segment: Segment) -> None:
    """Store a segment's row."""
    connection.execute(
        "INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?, ?)",
        (
            sled_id,
            segment.number,
            segment.first_seq,
            segment.events,
            segment.sealed_at,
            _segment_checksum(sled_id, segment),
        ),
    )


def _segment_checksum(sled_id: str, segment: Segment) -> int:
    return checksum(sled_id, segment.number, segment.first_seq, segment.events, segment.sealed_at)
