"""Rows that were altered or are gone: refused by name, never told to a session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from crdt import Store, StoreDamaged, StoreReader
from tests.crdt.samples import ROOM, alter, delivery, event, events, message

Use = Callable[[Store], Awaitable[object]]


@pytest.fixture
async def full(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A closed database with something in every table: 3 sealed segments (snapshots), a live one (ops), a session."""
    monkeypatch.setattr("crdt.event_log.COMPACT_LIVE_AFTER_OPS", 1000)
    async with Store.open(path, sled_id="build-1", segment_events=5) as store:
        await store.append_events(events(1, 16))
        await store.housekeep()
        await store.append_event(event(17))
        await store.write_settings({"device": "ABC"})
        await store.admit([message("$1"), message("$2", "another")], cursor="s1")
        turn = await store.begin_turn(ROOM, "$1", "hello")
        await store.complete_turn(turn, "hi", [delivery("d1")])
    return path


async def read_events(store: Store) -> object:
    return await store.read_events()


async def begin(store: Store) -> object:
    return await store.begin_turn(ROOM, "$2", "hello")


async def read_waiting(store: Store) -> object:
    return await store.waiting(ROOM)


async def read_due(store: Store) -> object:
    return await store.due_deliveries()


async def read_device(store: Store) -> object:
    return await store.read_setting("device")


async def nothing(store: Store) -> object:
    return None


SESSION = "(SELECT doc_id FROM documents WHERE name LIKE 'session/%')"
LIVE = "(SELECT doc_id FROM documents WHERE name = 'log/build-1/4')"
FLIP = "substr(data, 1, 20) || x'00' || substr(data, 22)"


@pytest.mark.parametrize(
    ("damage", "use", "named"),
    [
        (
            f"UPDATE ops SET data = CAST({FLIP} AS BLOB) WHERE doc_id = {LIVE} AND seq = 1",
            nothing,
            "op 1 of document log/build-1/4",
        ),
        (f"DELETE FROM ops WHERE doc_id = {LIVE} AND seq = 1", nothing, "op 1 of document log/build-1/4 is missing"),
        (f"DELETE FROM ops WHERE doc_id = {LIVE} AND seq = 2", nothing, "op 2 of document log/build-1/4 is missing"),
        (f"DELETE FROM ops WHERE doc_id = {LIVE}", nothing, "op 1 of document log/build-1/4 is missing"),
        (
            f"UPDATE ops SET op_id = op_id + 7 WHERE doc_id = {LIVE} AND seq = 2",
            nothing,
            "op 2 of document log/build-1/4 is missing",
        ),
        (f"UPDATE ops SET writer_id = 1 WHERE doc_id = {LIVE} AND seq = 2", nothing, "op 2 of document log/build-1/4"),
        (f"UPDATE documents SET ops = 1 WHERE doc_id = {LIVE}", nothing, "document log/build-1/4 was altered"),
        (
            f"UPDATE documents SET doc_id = doc_id | (1 << 31) WHERE doc_id = {LIVE}",
            nothing,
            "log/build-1/4 was altered",
        ),
        (
            f"UPDATE documents SET doc_id = doc_id | (1 << 62) WHERE doc_id = {LIVE}",
            nothing,
            "log/build-1/4 was altered",
        ),
        (f"DELETE FROM documents WHERE doc_id = {LIVE}", nothing, "3 documents, but rows of 4 segments"),
        (
            f"UPDATE snapshots SET packed_data = CAST({FLIP.replace('data', 'packed_data')} AS BLOB) WHERE doc_id = 1",
            read_events,
            "snapshot of document log/build-1/1",
        ),
        ("UPDATE snapshots SET ops = 2 WHERE doc_id = 1", read_events, "snapshot of document log/build-1/1"),
        ("DELETE FROM snapshots WHERE doc_id = 1", read_events, "document log/build-1/1 is missing"),
        ("UPDATE segments SET events = 6 WHERE segment = 2", nothing, "log segment 2 was altered"),
        ("DELETE FROM segments WHERE segment = 2", nothing, "segment before 3 is missing"),
        ("DELETE FROM segments WHERE segment = 1", nothing, "4 documents, but rows of 3 segments"),
        ("DELETE FROM segments WHERE segment = 4", nothing, "4 documents, but rows of 3 segments"),
        ("DELETE FROM segments", nothing, "4 documents, but rows of 0 segments"),
        (
            f"UPDATE ops SET data = CAST({FLIP} AS BLOB) WHERE doc_id = {SESSION} AND seq = 1",
            begin,
            f"op 1 of document session/{ROOM}/1",
        ),
        (
            f"DELETE FROM ops WHERE doc_id = {SESSION} AND seq = 2",
            begin,
            f"op 2 of document session/{ROOM}/1 is missing",
        ),
        (f"DELETE FROM documents WHERE doc_id = {SESSION}", begin, f"document session/{ROOM}/1 is missing"),
        ("UPDATE sessions SET part = 2", begin, f"row of session {ROOM} was altered"),
        ("UPDATE sessions SET turns = 0", begin, f"row of session {ROOM} was altered"),
        ("DELETE FROM sessions", begin, f"row of session {ROOM} is missing"),
        ("UPDATE inbox SET text = 'forged' WHERE key = '$2'", read_waiting, "inbox row of message $2"),
        ("UPDATE inbox SET sender = '@mallory:x' WHERE key = '$2'", read_waiting, "inbox row of message $2"),
        ("UPDATE inbox SET is_context = 1 WHERE key = '$2'", read_waiting, "inbox row of message $2"),
        ("UPDATE outbox SET content = '{}'", read_due, "outbox row of delivery d1"),
        ("UPDATE settings SET value = 'forged' WHERE name = 'device'", read_device, "row of setting device"),
        ("UPDATE settings SET value = 's0' WHERE name = 'cursor'", lambda store: store.read_cursor(), "setting cursor"),
    ],
)
async def test_an_altered_or_missing_row_is_named(full: Path, damage: str, use: Use, named: str) -> None:
    assert alter(full, damage) >= 1
    with pytest.raises(StoreDamaged) as caught:
        async with Store.open(full) as store:
            await use(store)
    assert named in str(caught.value)
    assert str(full) in str(caught.value)


async def test_what_is_not_damaged_is_still_there(full: Path) -> None:
    alter(full, f"DELETE FROM ops WHERE doc_id = {SESSION} AND seq = 2")
    async with Store.open(full) as store:
        for _ in range(2):
            with pytest.raises(StoreDamaged):
                await store.read_transcript(ROOM)
        assert len(await store.read_events()) == 17
        assert (await store.begin_turn("!new", "$9", "hello")).attempt == 1


async def test_a_log_document_that_ends_early_is_noticed(full: Path) -> None:
    """Both rows agree with their checksums; only together they are wrong."""
    async with Store.open(full, segment_events=5) as store:
        segment = store._event_log._segments[0]
        document = await store._event_log._documents.get("log/build-1/1")
        assert segment.events == len(document.array("events"))
        with document._doc.transaction():
            document.array("events").clear()
        with pytest.raises(StoreDamaged, match="lost events"):
            await store.read_events()


async def test_the_row_of_a_rolled_session_cannot_vanish_unnoticed(full: Path) -> None:
    async with Store.open(full) as store:
        await store.roll_session(ROOM, 0)
    alter(full, "DELETE FROM sessions")
    async with Store.open(full) as store:
        with pytest.raises(StoreDamaged, match="row of session"):
            await store.read_llm_session(ROOM)
        assert await store.read_llm_session(f"{ROOM}/1") is None


async def test_a_reader_names_damage_too(full: Path) -> None:
    alter(full, "UPDATE sessions SET part = 2")
    async with StoreReader.open(full) as reader:
        with pytest.raises(StoreDamaged, match="row of session"):
            await reader.list_sessions()
        assert len(await reader.read_events()) == 17


@pytest.mark.parametrize(
    ("offset", "byte", "named"),
    [
        (18, 3, "file format"),
        (19, 0, "file format"),
        (47, 5, "unsupported file format"),
        (60, 0x80, "schema number"),
        (63, 2, "schema number"),
        (63, 4, "schema number"),
    ],
)
async def test_an_altered_header_is_named(full: Path, offset: int, byte: int, named: str) -> None:
    """SQLite would take such a file for one that can't be written, or the store for one of an older Musher."""
    with full.open("r+b") as file:
        file.seek(offset)
        file.write(bytes([byte]))
    with pytest.raises(StoreDamaged, match=named):
        async with Store.open(full):
            pass
