"""The store as a whole: opened, closed, watched at its pause points, and used by callers that go away."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from crdt import CrdtError, EventBatch, Store, StoreClosed, StoreFull, Turn
from crdt.documents import delete_document
from tests.crdt.breakage import fill_disk, free_disk
from tests.crdt.samples import ROOM, alter, delivery, event, events, lines, look, message, told

CALLS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "append_event": lambda store: store.append_event(event()),
    "append_events": lambda store: store.append_events(events(1, 2)),
    "append_events, none": lambda store: store.append_events([]),
    "append_batches": lambda store: store.append_batches([EventBatch((event(),), ("k",))]),
    "append_batches, none": lambda store: store.append_batches([]),
    "read_events": lambda store: store.read_events(),
    "write_llm_session": lambda store: store.write_llm_session(ROOM, persona_name="", scope="single-sled"),
    "read_llm_session": lambda store: store.read_llm_session(ROOM),
    "assemble_and_advance_session": lambda store: store.assemble_and_advance_session(ROOM),
    "begin_turn": lambda store: store.begin_turn(ROOM, "$1", "hello"),
    "complete_turn": lambda store: store.complete_turn(Turn(ROOM, "$1", "hello"), "hi"),
    "park_turn": lambda store: store.park_turn(Turn(ROOM, "$1", "hello")),
    "read_transcript": lambda store: store.read_transcript(ROOM),
    "roll_session": lambda store: store.roll_session(ROOM, 0),
    "admit": lambda store: store.admit([message("$1")], "s1"),
    "read_cursor": lambda store: store.read_cursor(),
    "waiting_sessions": lambda store: store.waiting_sessions(),
    "waiting": lambda store: store.waiting(ROOM),
    "settle": lambda store: store.settle(["$1"], "too old"),
    "due_deliveries": lambda store: store.due_deliveries(),
    "delivery_attempted": lambda store: store.delivery_attempted("d1"),
    "delivery_sent": lambda store: store.delivery_sent("d1", "$e"),
    "delivery_readdressed": lambda store: store.delivery_readdressed("d1", ROOM, "{}"),
    "delivery_dropped": lambda store: store.delivery_dropped("d1", "why"),
    "read_setting": lambda store: store.read_setting("device"),
    "write_settings": lambda store: store.write_settings({"device": "ABC"}),
    "housekeep": lambda store: store.housekeep(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_closed_store_raises(path: Path, call: Callable[[Store], Awaitable[object]]) -> None:
    async with Store.open(path) as store:
        pass
    with pytest.raises(StoreClosed, match=r"musher\.db is closed"):
        await call(store)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_store_that_was_never_opened_raises(path: Path, call: Callable[[Store], Awaitable[object]]) -> None:
    with pytest.raises(StoreClosed):
        await call(Store.open(path))
    assert list(path.parent.iterdir()) == []


async def test_closing_finishes_what_was_begun(path: Path) -> None:
    async with Store.open(path) as store:
        begun = [
            asyncio.create_task(store.append_events(events(1, 150))),
            asyncio.create_task(store.begin_turn(ROOM, "$1", "hello")),
            asyncio.create_task(store.write_settings({"device": "ABC"})),
            asyncio.create_task(store.admit([message("$1")], "s1")),
        ]
        await asyncio.sleep(0)
    await asyncio.gather(*begun)
    async with Store.open(path) as store:
        assert len(await store.read_events()) == 150
        assert len(await store.read_transcript(ROOM)) == 1
        assert await store.read_setting("device") == "ABC"
        assert await store.read_cursor() == "s1"


async def test_closing_twice_does_nothing(path: Path) -> None:
    store = Store.open(path)
    await store.close()
    async with store:
        await store.append_event(event())
        await asyncio.gather(store.close(), store.close())
    await store.close()
    async with Store.open(path) as again:
        assert len(await again.read_events()) == 1


@pytest.mark.parametrize("suspensions", range(0, 40, 3))
async def test_a_close_that_is_cancelled_still_closes(path: Path, suspensions: int) -> None:
    store = Store.open(path, segment_events=2)
    await store.__aenter__()
    begun = asyncio.create_task(store.append_events(events(1, 20)))
    closing = asyncio.create_task(store.close())
    for _ in range(suspensions):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing, begun])
    await store.close()
    for thread in [thread for thread in threading.enumerate() if "_connection_worker" in thread.name]:
        await asyncio.to_thread(thread.join, 5)
        assert not thread.is_alive()
    async with Store.open(path) as again:
        assert len(await again.read_events()) in {0, 20}


@pytest.mark.parametrize("suspensions", range(0, 30, 3))
async def test_an_opening_that_is_cancelled_leaves_the_database_to_others(path: Path, suspensions: int) -> None:
    opening = asyncio.create_task(Store.open(path).__aenter__())
    for _ in range(suspensions):
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    if not opening.cancelled():
        await opening.result().close()
    async with Store.open(path) as store:
        assert await store.append_event(event()) == 1


async def test_an_error_inside_the_block_closes_the_store(path: Path) -> None:
    with pytest.raises(LookupError):
        async with Store.open(path) as store:
            await store.append_event(event())
            raise LookupError
    async with Store.open(path) as store:
        assert len(await store.read_events()) == 1


async def test_a_sled_without_a_name_is_the_one_that_the_database_keeps(path: Path) -> None:
    async with Store.open(path, sled_id="") as store:
        made = store.sled_id
    async with Store.open(path, sled_id="") as store:
        assert store.sled_id == made != ""


def test_segments_of_no_events_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="segment_events must be at least 1"):
        Store.open(path, segment_events=0)


async def test_every_step_is_announced_after_its_commit(path: Path) -> None:
    steps: list[str] = []

    async def on_step(step: str) -> None:
        steps.append(
            f"{step}: {len(await store.waiting(ROOM))} waiting, {len(await store.read_transcript(ROOM))} entries"
        )

    async with Store.open(path, on_step=on_step) as store:
        await store.admit([message("$1")], "s1")
        turn = await store.begin_turn(ROOM, "$1", "hello")
        await store.complete_turn(turn, "hi")
        await store.complete_turn(turn, "hi")
        await store.assemble_and_advance_session(ROOM)
    assert steps == ["admit: 1 waiting, 0 entries", "begin: 1 waiting, 1 entries", "complete: 0 waiting, 2 entries"]


async def test_a_caller_that_dies_at_a_pause_point_has_its_commit(path: Path) -> None:
    async def die(step: str) -> None:
        if step == "begin":
            raise LookupError

    async with Store.open(path, on_step=die) as store:
        await store.append_event(event(1))
        with pytest.raises(LookupError):
            await store.begin_turn(ROOM, "$1", "hello")
    async with Store.open(path) as store:
        turn = await store.begin_turn(ROOM, "$1", "hello")
        assert (turn.attempt, turn.lines) == (2, lines(1, 1))


async def test_settings_are_kept_and_overwritten(path: Path) -> None:
    async with Store.open(path) as store:
        assert await store.read_setting("device") is None
        await store.write_settings({"device": "ABC", "token": "t"})
        await store.write_settings({"device": "DEF"})
    async with Store.open(path) as store:
        assert [await store.read_setting(name) for name in ("device", "token", "other")] == ["DEF", "t", None]


async def test_a_refused_call_of_a_caller_that_left_is_not_lost_in_silence(store: Store) -> None:
    await store.write_llm_session(ROOM, "", "single-sled")  # so that the first wait is for the commit
    with capture_logs() as logs:
        call = asyncio.create_task(store.complete_turn(Turn(ROOM, "$9", "hello"), "hi"))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
    assert call.cancelled()
    assert [entry["event"] for entry in logs if entry["event"] == "change_refused"] == ["change_refused"]


async def test_housekeeping_that_fails_is_logged_and_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compacted = asyncio.Event()

    async def fail(self: object, name: str) -> None:
        compacted.set()
        raise StoreFull("musher.db")

    async with Store.open(path, segment_events=3) as store:
        with monkeypatch.context() as broken, capture_logs() as logs:
            broken.setattr("crdt.documents.Documents.compact", fail)
            await store.append_events(events(1, 3))
            await asyncio.wait_for(compacted.wait(), 30)
            await store.read_llm_session(ROOM)
        assert "housekeeping_failed" in [entry["event"] for entry in logs]
        assert await store.append_events(events(4, 9)) == [4, 5, 6, 7, 8, 9]
        await store.housekeep()
        assert len(await store.read_events()) == 9
    assert look(path, "SELECT count(*) FROM ops") == [(0,)]


async def test_segments_that_a_death_left_uncompacted_are_compacted_and_a_damaged_one_holds_up_none(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(self: object, name: str) -> None:
        raise StoreFull("musher.db")

    with monkeypatch.context() as dying:
        dying.setattr("crdt.documents.Documents.compact", die)
        async with Store.open(path, sled_id="build-1", segment_events=3) as store:
            await store.append_events(events(1, 13))
    alter(path, "UPDATE ops SET data = zeroblob(9) WHERE doc_id = 1")
    async with Store.open(path, segment_events=3) as store:
        with capture_logs() as logs:
            await store.housekeep()
        refused = [entry["document"] for entry in logs if entry["event"] == "compaction_refused"]
        assert refused == ["log/build-1/1"]
        assert [one.event_seq for one in await store.read_events(after=3)] == list(range(4, 14))
    assert look(path, "SELECT DISTINCT doc_id FROM ops") == [(1,), (5,)]


async def test_retention_that_cannot_be_committed_takes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise StoreFull(str(path))

    async with Store.open(path, segment_events=3, retention_events=3) as store:
        with monkeypatch.context() as broken:
            broken.setattr("crdt.event_log.delete_document", fail)
            await store.append_events(events(1, 10))
            if store._housekeeping is not None:
                await asyncio.wait({store._housekeeping})  # it hides what it is about to drop
            with pytest.raises(StoreFull):
                await store.housekeep()
            assert len(await store.read_events()) == 10
        await store.housekeep()
        assert [one.event_seq for one in await store.read_events()] == [7, 8, 9, 10]


async def test_a_store_opens_on_a_full_disk_though_retention_is_due(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_is_full = True

    def delete_if_there_is_room(connection: sqlite3.Connection, name: str) -> None:
        if disk_is_full:
            raise StoreFull(str(path))
        delete_document(connection, name)

    monkeypatch.setattr("crdt.event_log.delete_document", delete_if_there_is_room)
    async with Store.open(path, segment_events=3) as store:
        await store.append_events(events(1, 10))
    async with Store.open(path, segment_events=3, retention_events=3) as store:
        assert len(await store.read_events()) == 10
        disk_is_full = False
        await store.housekeep()
        assert [one.event_seq for one in await store.read_events()] == [7, 8, 9, 10]


async def test_retention_beside_readers_tears_no_hole(path: Path) -> None:
    async with Store.open(path, segment_events=5, retention_events=20) as store:
        await store.write_llm_session(ROOM, persona_name="", scope="single-sled")

        async def append() -> None:
            for first in range(1, 400, 4):
                await store.append_events(events(first, first + 3))

        async def assemble() -> list[str]:
            found: list[str] = []
            while not appending.done():
                found += await store.assemble_and_advance_session(ROOM)
                await store.read_cursor()  # leaves the interpreter to the store's threads
            return found + await store.assemble_and_advance_session(ROOM)

        async def read() -> None:
            while not appending.done():
                seqs = [one.event_seq for one in await store.read_events()]
                assert seqs == list(range(seqs[0], seqs[0] + len(seqs))) if seqs else True
                await store.read_cursor()

        appending = asyncio.create_task(append())
        found, *_ = await asyncio.gather(assemble(), read(), appending)
        assert told(found) == list(range(1, 401))


async def test_a_full_disk_refuses_every_kind_of_change_and_then_all_goes_on(path: Path) -> None:
    async with Store.open(path) as store:
        await store.admit([message("$1")], "s1")
        turn = await store.begin_turn(ROOM, "$1", "hello")
        await fill_disk(store)
        big = "x" * 100_000
        for refused in (
            store.admit([message("$2", big)], "s2"),
            store.complete_turn(turn, big, [delivery("d1")]),
            store.write_settings({"device": big}),
            store.write_llm_session(ROOM, persona_name=big, scope="single-sled"),
        ):
            with pytest.raises(StoreFull):
                await refused
            await fill_disk(store)
        assert await store.read_cursor() == "s1"
        assert await store.due_deliveries() == []
        assert [one.key for one in await store.waiting(ROOM)] == ["$1"]
        assert len(await store.read_transcript(ROOM)) == 1
        await free_disk(store)
        await store.complete_turn(turn, "hi", [delivery("d1")])
        assert await store.waiting(ROOM) == []
        assert len(await store.due_deliveries()) == 1
    async with Store.open(path) as store:
        assert len(await store.read_transcript(ROOM)) == 2


def test_every_error_of_the_store_descends_from_one_root() -> None:
    import crdt.errors

    errors = [found for found in vars(crdt.errors).values() if isinstance(found, type) and issubclass(found, Exception)]
    assert len(errors) >= 12
    assert all(issubclass(error, CrdtError) for error in errors)
