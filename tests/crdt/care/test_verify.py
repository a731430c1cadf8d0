"""Verify: every row is read, and what is wrong is named."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from pathlib import Path

import pytest

from crdt import (
    PipelineEvent,
    SledMismatch,
    Store,
    StoreDamaged,
    StoreUnavailable,
    Verification,
    back_up_database,
    verify_database,
)
from crdt.care.files import connect
from crdt.log_entries import encode_event
from crdt.owner import lock_path
from crdt.schema import MIGRATIONS, prepare, unpacked
from tests.crdt.care.life import live
from tests.crdt.samples import ROOM, alter, event, events, go_back_to_the_fourth_schema, look


async def test_a_database_is_verified_beside_its_owner(path: Path) -> None:
    async with Store.open(path, sled_id="build-1", segment_events=5) as store:
        await live(store)
        steps: list[tuple[str, int, int]] = []
        found = await asyncio.to_thread(verify_database, path, lambda *step: steps.append(step))
        await store.append_event(event(18))
    assert found == Verification("build-1", events=17, sessions=2, documents=6, problems=())
    assert steps[0] == ("checking pages", 0, 0)
    assert steps[-1] == ("reading documents", 6, 6)
    assert verify_database(path).events == 18


SESSION = f"(SELECT doc_id FROM documents WHERE name = 'session/{ROOM}/1')"


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (
            "UPDATE snapshots SET packed_data = zeroblob(40) WHERE doc_id = 2",
            "snapshot of document log/build-1/2 was altered",
        ),
        (f"DELETE FROM ops WHERE doc_id = {SESSION} AND seq = 2", f"op 2 of document session/{ROOM}/1 is missing"),
        (f"DELETE FROM documents WHERE doc_id = {SESSION}", f"document session/{ROOM}/1 is missing"),
        (f"DELETE FROM documents WHERE doc_id = {SESSION}", "no document has that number"),
        (f"DELETE FROM sessions WHERE session_id = '{ROOM}'", f"document session/{ROOM}/1 belongs to no segment"),
        (f"DELETE FROM sessions WHERE session_id = '{ROOM}'", f"belongs to session {ROOM}, which is missing"),
        ("DELETE FROM segments WHERE segment = 2", "segment before 3 is missing"),
        ("DELETE FROM turns WHERE outcome IS NULL", "turn $open of session !room:example.org has no reply, and no row"),
        ("DELETE FROM turns WHERE outcome IS NULL", "message $open waits for turn $open, which is not open"),
        ("UPDATE turns SET attempts = 9 WHERE outcome IS NULL", "row of turn $open was altered"),
        ("UPDATE turns SET outcome = 'x' WHERE outcome IS NULL", "has no reply, and no row that says it is open"),
        ("UPDATE outbox SET first_attempt_at = 2e9 WHERE delivery_id = 'd1'", "outbox row of delivery d1 was altered"),
        ("UPDATE inbox SET sender = '@mallory:x' WHERE key = '$waiting'", "inbox row of message $waiting was altered"),
        ("UPDATE settings SET value = 'x' WHERE name = 'device'", "row of setting device was altered"),
        ("UPDATE settings SET value = 'x' WHERE name = 'cursor'", "row of setting cursor was altered"),
        ("DROP INDEX outbox_due", "definition of outbox_due was altered"),
    ],
)
async def test_verify_names_what_is_wrong(full: Path, damage: str, named: str) -> None:
    alter(full, damage)
    problems = verify_database(full).problems
    assert any(named in problem for problem in problems), problems


async def test_the_turns_are_looked_through_once_however_many_sessions_there_are(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two thousand sessions with a hundred turns each took 40 s, most of it for looking through all turns each time."""
    looked: list[str] = []

    def connect_watched(path: Path, mode: str) -> sqlite3.Connection:
        connection = connect(path, mode)
        connection.set_trace_callback(looked.append)
        return connection

    monkeypatch.setattr("crdt.care.files.connect", connect_watched)
    assert verify_database(full).sessions == 2
    whole = [each for each in looked if "FROM turns" in each and "outcome IS NULL" in each]
    assert len(whole) == len(set(whole))


async def test_verify_goes_on_after_the_first_problem(full: Path) -> None:
    alter(full, "UPDATE snapshots SET packed_data = zeroblob(40) WHERE doc_id < 3")
    alter(full, "UPDATE settings SET value = 'x'")
    assert len(verify_database(full).problems) == 4


async def test_each_problem_of_the_pages_is_a_line_of_its_own(full: Path) -> None:
    """SQLite tells of several in one row, under a heading."""
    ((page_size,),) = look(full, "PRAGMA page_size")
    with full.open("r+b") as file:
        for (page,) in look(full, "SELECT rootpage FROM sqlite_master WHERE name IN ('inbox', 'outbox')"):
            file.seek((page - 1) * page_size + 7)
            file.write(b"\x3c")  # bytes that are said to lie between the cells
    problems = verify_database(full).problems
    assert len(problems) == 2
    assert all(problem.startswith("SQLite finds: Fragmentation of ") for problem in problems)
    with pytest.raises(StoreDamaged) as caught:
        async with Store.open(full):
            pass
    assert f"is damaged: {problems[0]}; restore a backup" in str(caught.value)


async def test_an_altered_state_is_refused(full: Path) -> None:
    alter(full, "UPDATE state SET sled_id = 'build-2'")
    for refuse in (verify_database, lambda path: back_up_database(path, path.with_name("backup.db"))):
        with pytest.raises(StoreDamaged, match="own state was altered"):
            refuse(full)
    with pytest.raises(StoreDamaged, match="own state was altered"):
        async with Store.open(full):
            pass


async def test_marks_past_the_end_of_the_log_are_named(full: Path) -> None:
    async with Store.open(full, segment_events=5) as store:
        store._sessions._event_log._segments[-1:] = []
        document = await store._sessions._documents.get(f"session/{ROOM}/1")
        op = document.change(lambda: document.map("high_water").__setitem__("build-1", '{"build-1":99}'))
        session = await store._sessions._open(ROOM)
        await store._sessions._commit(session, [op])
    assert verify_database(full).problems == (
        f"session {ROOM} has seen event 99 of sled build-1, whose log ends at 17",
    )


async def test_a_database_that_lost_its_newest_commits_is_not_verified(path: Path, tmp_path: Path) -> None:
    async with Store.open(path) as store:
        await store.append_event(event(1))
        old = tmp_path / "old"
        shutil.copytree(path.parent, old, ignore=shutil.ignore_patterns("*.lock", "old"))
        await store.append_event(event(2))
        shutil.copy(lock_path(path), old)
    with pytest.raises(StoreDamaged, match="the newest 1 commits are missing"):
        verify_database(old / "musher.db")


def write_first_schema(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    prepare(connection)
    connection.executescript(MIGRATIONS[0])
    connection.executescript(
        "PRAGMA application_id = 0x4D555348; PRAGMA user_version = 1; PRAGMA journal_mode = WAL;"
        "INSERT INTO state VALUES (1, 'a-database', 'build-1', 7, 3);"
        "INSERT INTO turns VALUES ('!r', '$1', 1, 'answered', 5);"
    )
    connection.close()


async def test_a_database_of_the_first_schema_is_brought_up_to_date(path: Path, backup: Path) -> None:
    await asyncio.to_thread(write_first_schema, path)
    with pytest.raises(StoreUnavailable, match="still has schema 1"):
        verify_database(path)
    assert back_up_database(path, backup).sled_id == "build-1"
    assert look(path, "PRAGMA user_version") == [(1,)]
    async with Store.open(path) as store:
        assert store.sled_id == "build-1"
        assert await store.append_event(event(1)) == 1
    assert verify_database(path).problems == ()


async def test_snapshots_of_the_fourth_schema_are_packed_and_an_altered_one_is_refused_by_name(full: Path) -> None:
    go_back_to_the_fourth_schema(full)
    alter(full, "UPDATE snapshots SET data = zeroblob(40) WHERE doc_id = 2")
    async with Store.open(full, segment_events=5) as store:
        assert [one.event_seq for one in await store.read_events(after=10)] == list(range(11, 18))
        with pytest.raises(StoreDamaged, match="snapshot of document log/build-1/2 was altered"):
            await store.read_events(after=5, limit=5)
    assert all(unpacked(data) for (data,) in look(full, "SELECT packed_data FROM snapshots WHERE doc_id <> 2"))
    assert verify_database(full).problems == ("the snapshot of document log/build-1/2 was altered",)


async def test_an_op_that_has_no_place_in_the_sixth_schema_is_refused(full: Path) -> None:
    go_back_to_the_fourth_schema(full)
    alter(
        full, "INSERT INTO ops SELECT doc_id, seq + (1 << 32), writer_id, data, checksum FROM ops WHERE doc_id % 2 = 1"
    )
    with pytest.raises(StoreDamaged, match="does not fit into schema"):
        async with Store.open(full):
            pass
    assert look(full, "PRAGMA user_version") == [(4,)]


async def test_text_that_can_not_be_read_in_the_first_schema_is_named(path: Path) -> None:
    await asyncio.to_thread(write_first_schema, path)
    alter(path, "UPDATE turns SET key = CAST(x'ff41' AS TEXT)")
    with pytest.raises(StoreDamaged, match="text that can't be read"):
        async with Store.open(path):
            pass
    assert look(path, "PRAGMA user_version") == [(1,)]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("UPDATE state SET writer_id = 3", "own state was altered"),
        ("UPDATE settings SET value = 'x' WHERE name = 'cursor'", "row of setting cursor was altered"),
        ("UPDATE inbox SET text = 'x' WHERE key = '$waiting'", "inbox row of message \\$waiting was altered"),
    ],
)
async def test_what_is_altered_in_an_older_schema_is_refused_by_name_and_left_as_it_is(
    full: Path, backup: Path, damage: str, named: str
) -> None:
    go_back_to_the_fourth_schema(full)
    alter(full, damage)
    with pytest.raises(StoreDamaged, match=named):
        async with Store.open(full):
            pass
    with pytest.raises(StoreDamaged, match=named):
        back_up_database(full, backup)
    assert look(full, "PRAGMA user_version") == [(4,)]


async def test_an_older_schema_that_lost_its_newest_commits_is_refused(full: Path, backup: Path) -> None:
    lost = full.read_bytes()  # noqa: ASYNC240 - nothing else is under way
    async with Store.open(full) as store:
        await store.append_event(event(18))
    await asyncio.to_thread(full.write_bytes, lost)
    go_back_to_the_fourth_schema(full)
    with pytest.raises(StoreDamaged, match="the newest 1 commits are missing"):
        async with Store.open(full):
            pass
    with pytest.raises(StoreDamaged, match="the newest 1 commits are missing"):
        back_up_database(full, backup)
    assert look(full, "PRAGMA user_version") == [(4,)]


async def test_an_older_schema_of_another_sled_is_refused_and_left_as_it_is(full: Path) -> None:
    go_back_to_the_fourth_schema(full)
    with pytest.raises(SledMismatch, match="belongs to sled 'build-1', not 'build-2'"):
        async with Store.open(full, sled_id="build-2"):
            pass
    assert look(full, "PRAGMA user_version") == [(4,)]


async def test_a_schema_number_that_was_altered_is_refused(full: Path) -> None:
    alter(full, "PRAGMA user_version = 0")
    with pytest.raises(StoreDamaged, match="schema number was altered"):
        async with Store.open(full):
            pass


async def test_events_that_could_never_have_been_stored_are_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(seq: int, at_ms: int, given: PipelineEvent) -> str:
        return encode_event(seq + 1 if seq == 2 else seq, at_ms, given)

    monkeypatch.setattr("crdt.event_log.encode_event", encode)
    async with Store.open(path, segment_events=1) as store:
        await store.append_events(events(1, 2))
        monkeypatch.setattr("crdt.store.validate_event", lambda event, *, allow_gap: None)
        await store.append_event(event(3, story_id="a\u2028b"))
    wrong_seq, forged = verify_database(path).problems
    assert "holds event 3 where event 2 should be" in wrong_seq
    assert forged.startswith("event 3 of document log/")
    assert "U+2028" in forged
