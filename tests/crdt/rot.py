"""What decay does to files, and what can still be read of a store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from crdt import StoreDamaged, StoreReader

Contents = dict[str, object]
Parts = dict[str, Callable[[], Awaitable[object]]]
"""How each part of a store is read."""


def flip(file: Path, at: int, bit: int) -> None:
    """Turn one bit over."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.write_bytes(data)


def used(file: Path) -> list[int]:
    """The places of bytes that are not zero: most others are of no use to anybody."""
    return [place for place, byte in enumerate(file.read_bytes()) if byte]


def parts_of(reader: StoreReader, rooms: Iterable[str]) -> Parts:
    """All that those who only look can read."""
    parts: Parts = {"log": lambda: reader.read_events(limit=100_000), "sessions": reader.list_sessions}
    for room in rooms:
        parts[f"transcript of {room}"] = lambda room=room: reader.read_transcript(room)  # type: ignore[misc]
    return parts


async def contents(parts: Parts) -> tuple[Contents, list[str]]:
    """All that can be read, and which parts were refused."""
    found: Contents = {}
    refused: list[str] = []
    for name, read in parts.items():
        try:
            found[name] = await read()
        except StoreDamaged:
            refused.append(name)
    return found, refused
