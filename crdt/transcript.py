"""A session's document: how its meta data, marks and transcript entries stand in the roots. Pure.

`meta` holds `persona_name`, `scope` and `start` (JSON {sled: seq}: what retention had taken before the session
began, and so is no gap to it). `high_water` holds, for each sled that writes, JSON {sled: seq}. `transcript` is an
array of JSON objects, oldest first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from crdt.documents import Document
from crdt.marks import Marks, join
from crdt.model import SINGLE_SLED, LlmSessionView, TranscriptEntry
from crdt.unheard import newest_from


def document_name(session_id: str, part: int) -> str:
    """Name the document of one part of a session."""
    return f"session/{session_id}/{part}"


def well_formed(text: str) -> str:
    """Replace lone surrogates, which neither UTF-8 nor a CRDT can hold, by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return str.__str__(text)  # no longer of a class derived from `str`


_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def encode_entry(entry: TranscriptEntry) -> str:
    """Encode an entry; fields that are empty are left out."""
    fields: dict[str, Any] = {"role": entry.role, "key": entry.key, "text": entry.text}
    if entry.lines:
        fields["lines"] = entry.lines
    if entry.context:
        fields["context"] = entry.context
    if entry.failed:
        fields["failed"] = True
    return _dumps(fields)


def decode_entry(text: str) -> TranscriptEntry:
    """Read back what `encode_entry` wrote."""
    return TranscriptEntry(**json.loads(text))


def read_entries(document: Document) -> list[TranscriptEntry]:
    """Read the whole transcript, oldest first."""
    return [decode_entry(text) for text in document.texts("transcript")]


def read_high_water(document: Document) -> Marks:
    """Read the marks: the join of all writers' copies."""
    marks: Marks | None = document.memo.get("high_water")
    if marks is None:
        marks = join(json.loads(copy) for copy in (document.map("high_water").to_py() or {}).values())
        document.memo["high_water"] = marks
    return dict(marks)


def read_start(document: Document) -> Marks:
    """Read what was already gone when the session began."""
    start: Marks | None = document.memo.get("start")
    if start is None:
        start = document.memo["start"] = json.loads(document.map("meta").get("start", "{}"))
    return dict(start)


def read_view(session_id: str, document: Document) -> LlmSessionView:
    """Read a session as its users see it; a stored scope is returned as it is, known or not."""
    meta = document.map("meta").to_py() or {}
    return LlmSessionView(
        session_id, meta.get("persona_name", ""), meta.get("scope", SINGLE_SLED), read_high_water(document)
    )


def write_meta(document: Document, persona_name: str, scope: str, start: Mapping[str, int] | None = None) -> None:
    """Set persona and scope, inside a change; `start` once, when the session begins."""
    texts = {"persona_name": persona_name, "scope": scope}
    if start:
        texts["start"] = _dumps(start)
    document.put("meta", texts)
    document.memo.pop("start", None)


def write_high_water(document: Document, writer: str, marks: Mapping[str, int]) -> None:
    """Set this writer's copy of the marks, inside a change."""
    document.put("high_water", {writer: _dumps(marks)})
    known = document.memo.get("high_water")
    if known is not None:
        document.memo["high_water"] = join((known, marks))


def open_turns(entries: Sequence[TranscriptEntry]) -> set[str]:
    """Keys of the turns that have no reply yet."""
    return {entry.key for entry in entries if entry.role == "user"} - {
        entry.key for entry in entries if entry.role == "assistant"
    }


def newest_turns(entries: Sequence[TranscriptEntry], at_most: int) -> list[TranscriptEntry]:
    """Take the newest entries, at most `at_most`, cut so that they begin with a user's entry; see `newest_from`."""
    start = max(0, len(entries) - at_most)
    while start < len(entries) and entries[start].role != "user":
        start += 1
    return newest_from(entries, start)
