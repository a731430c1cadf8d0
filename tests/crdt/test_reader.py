"""The reader beside a running store: it sees what is committed, and changes nothing."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from crdt import (
    LlmSessionView,
    SessionSummary,
    Store,
    StoreClosed,
    StoreDamaged,
    StoreNewer,
    StoreReader,
    StoreUnavailable,
    back_up_database,
    verify_database,
)
from tests.crdt.samples import OTHER_ROOM, ROOM, alter, event, events


async def test_a_reader_beside_an_open_store_sees_what_is_committed(path: Path) -> None:
    async with Store.open(path, sled_id="build-1", segment_events=4) as store, StoreReader.open(path) as reader:
        assert await reader.read_events() == []
        assert await reader.list_sessions() == []
        await store.append_events(events(1, 10))
        assert await reader.read_events() == await store.read_events()
        await store.write_llm_session(ROOM, persona_name="dispatcher", scope="single-sled")
        turn = await store.begin_turn(ROOM, "$1", "hello")
        assert await reader.read_transcript(ROOM) == await store.read_transcript(ROOM)
        await store.complete_turn(turn, "hi")
        await store.assemble_and_advance_session(OTHER_ROOM)
        assert await reader.list_sessions() == [
            SessionSummary(OTHER_ROOM, "", "single-sled", {"build-1": 10}, 0),
            SessionSummary(ROOM, "dispatcher", "single-sled", {"build-1": 10}, 1),
        ]
        assert await reader.read_llm_session(ROOM) == await store.read_llm_session(ROOM)
        assert await reader.read_llm_session(ROOM) == LlmSessionView(ROOM, "dispatcher", "single-sled", {"build-1": 10})
        assert len(await reader.read_transcript(ROOM)) == 2
        await store.append_event(event(11))
        assert [one.event_seq for one in await reader.read_events(after=8)] == [9, 10, 11]


async def test_a_reader_pages_through_the_log_as_the_store_does(path: Path) -> None:
    async with Store.open(path, segment_events=4, retention_events=9) as store:
        await store.append_events(events(1, 30))
        await store.housekeep()
        async with StoreReader.open(path) as reader:
            for after, limit in [(0, 3), (0, 1000), (19, 5), (24, 4), (25, 1), (30, 5), (99, 5), (0, 0)]:
                assert await reader.read_events(after, limit) == await store.read_events(after, limit)


async def read_beside(path: Path) -> None:
    async with StoreReader.open(path) as reader:
        await reader.read_events()


def verify_beside(path: Path) -> None:
    verify_database(path)


def back_up_beside(path: Path) -> None:
    back_up_database(path, path.with_name("backup.db"))


@pytest.mark.parametrize("look_beside", [read_beside, verify_beside, back_up_beside])
async def test_who_reads_in_the_owners_process_takes_no_lock_from_it(
    path: Path, look_beside: Callable[[Path], Awaitable[None] | None]
) -> None:
    another_program = (
        f"import sqlite3; connection = sqlite3.connect({str(path)!r})\n"
        "connection.execute('SELECT * FROM state').fetchall(); connection.close()"
    )
    async with Store.open(path) as store:
        await store.append_event(event(1))
        if (looking := look_beside(path)) is not None:
            await looking
        # The last to leave moves the WAL into the file, and deletes it.
        await asyncio.to_thread(subprocess.run, [sys.executable, "-c", another_program], check=True)
        assert path.with_name(f"{path.name}-wal").exists()
        assert await store.append_event(event(2)) == 2


async def test_a_reader_needs_no_running_store(path: Path) -> None:
    async with Store.open(path) as store:
        await store.append_events(events(1, 3))
    async with StoreReader.open(str(path)) as reader:
        assert len(await reader.read_events()) == 3
        assert await reader.read_session(ROOM) is None
        assert await reader.read_llm_session(ROOM) is None
        assert await reader.read_transcript(ROOM) == []
    async with Store.open(path) as store:
        assert await store.append_event(event(4)) == 4


async def test_a_name_that_is_not_utf_8_is_no_session_and_no_damage(path: Path) -> None:
    async with Store.open(path) as store:
        await store.assemble_and_advance_session(ROOM)
    async with StoreReader.open(path) as reader:
        assert await reader.read_session("\udcff") is None
        assert await reader.read_transcript("\udcff") == []


async def test_two_readers_and_a_store_do_not_hinder_each_other(path: Path) -> None:
    async with Store.open(path) as store, StoreReader.open(path) as first, StoreReader.open(path) as second:
        for number in range(1, 30):
            seq, one, two = await asyncio.gather(
                store.append_event(event(number)), first.read_events(), second.read_events()
            )
            assert seq == number
            assert {len(one), len(two)} <= {number - 1, number}


async def test_what_a_reader_built_leaves_memory_quietly(path: Path) -> None:
    """Documents may be dropped only by the thread that made them."""
    async with Store.open(path, segment_events=5) as store:
        await store.append_events(events(1, 30))
        await store.begin_turn(ROOM, "$1", "hello")
        async with StoreReader.open(path) as reader:
            await reader.read_events()
            await reader.list_sessions()
            gc.collect()
        await store.housekeep()
        gc.collect()


async def test_a_closed_reader_says_so(path: Path) -> None:
    async with Store.open(path):
        pass
    reader = StoreReader.open(path)
    with pytest.raises(StoreClosed):
        await reader.read_events()
    async with reader:
        pass
    with pytest.raises(StoreClosed):
        await reader.read_events()


async def test_a_database_that_is_not_there_is_not_made(path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="does not exist"):
        async with StoreReader.open(path):
            pass
    assert list(path.parent.iterdir()) == []


async def test_a_database_in_the_making_is_still_empty(path: Path) -> None:
    await asyncio.to_thread(path.touch)
    with pytest.raises(StoreUnavailable, match="still empty"):
        async with StoreReader.open(path):
            pass
    async with Store.open(path):
        pass
    alter(path, "DELETE FROM state")
    with pytest.raises(StoreUnavailable, match="still empty"):
        async with StoreReader.open(path):
            pass


async def test_files_that_are_not_ours_are_refused(path: Path) -> None:
    await asyncio.to_thread(path.write_bytes, b"hello")
    with pytest.raises(StoreDamaged, match="not an SQLite database"):
        async with StoreReader.open(path):
            pass
    await asyncio.to_thread(path.unlink)
    alter(path, "CREATE TABLE theirs (x)")
    with pytest.raises(StoreDamaged, match="another program"):
        async with StoreReader.open(path):
            pass
    await asyncio.to_thread(path.write_bytes, b"SQLite format 3\x00" + b"\xff" * 8000)
    with pytest.raises(StoreDamaged):
        async with StoreReader.open(path):
            pass


async def test_a_newer_database_is_refused(path: Path) -> None:
    async with Store.open(path):
        pass
    alter(path, "PRAGMA user_version = 99")
    with pytest.raises(StoreNewer):
        async with StoreReader.open(path):
            pass


async def test_a_table_that_is_gone_is_named(path: Path) -> None:
    async with Store.open(path):
        pass
    alter(path, "DROP TABLE sessions")
    async with StoreReader.open(path) as reader:
        with pytest.raises(StoreUnavailable, match="no such table"):
            await reader.list_sessions()
    alter(path, "DROP TABLE state")
    with pytest.raises(StoreUnavailable, match="no such table"):
        async with StoreReader.open(path):
            pass


async def test_a_session_whose_document_is_gone_is_damage(path: Path) -> None:
    async with Store.open(path) as store:
        await store.begin_turn(ROOM, "$1", "hello")
    alter(path, "DELETE FROM documents")
    async with StoreReader.open(path) as reader:
        for read in (reader.read_transcript, reader.read_session, reader.read_llm_session):
            with pytest.raises(StoreDamaged, match="is missing"):
                await read(ROOM)
