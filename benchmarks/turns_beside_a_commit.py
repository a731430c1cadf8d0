"""Row 2, its first line alone: begin_turn beside a raw commit."""

from __future__ import annotations

from pathlib import Path

from benchmarks import turns
from benchmarks.figure import Figure


async def measure(folder: Path, quick: bool) -> list[Figure]:
    """begin_turn in a log of 30,000."""
    found = await turns.sizes(folder, rounds=4 if quick else 9, samples=50 if quick else 100, events=(30_000,))
    return found[:1]
