"""The database file: group commit, commits that fail, files that are not ours."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import crdt.database
from crdt import (
    CrdtError,
    SledMismatch,
    Store,
    StoreClosed,
    StoreDamaged,
    StoreFull,
    StoreNewer,
    StoreReader,
    StoreUnavailable,
)
from crdt.database import Database, open_database
from crdt.errors import translate
from crdt.owner import lock_path
from crdt.schema import APPLICATION_ID, SCHEMA
from tests.crdt.samples import alter, event, look


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    """An open database with a table of our own."""
    opened = await open_database(path, "build-1")
    await opened.write(lambda connection: connection.execute("CREATE TABLE t (x INTEGER UNIQUE)") and None)
    yield opened
    await opened.close()


def insert(*values: object) -> Callable[[sqlite3.Connection], int]:
    """A unit that inserts rows one by one and returns how many."""

    def unit(connection: sqlite3.Connection) -> int:
        for value in values:
            connection.execute("INSERT INTO t VALUES (?)", (value,))
        return len(values)

    return unit


async def stored(database: Database) -> list[int]:
    return await database.read(lambda connection: [x for (x,) in connection.execute("SELECT x FROM t ORDER BY x")])


def failing(error: Exception) -> Callable[[sqlite3.Connection], None]:
    def unit(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (99)")
        raise error

    return unit


async def test_callers_that_wait_together_share_one_commit(database: Database) -> None:
    commits = database.commits
    assert await asyncio.gather(*(database.write(insert(n)) for n in range(100))) == [1] * 100
    assert database.commits == commits + 1
    assert await stored(database) == list(range(100))


async def test_more_callers_than_a_commit_takes_are_all_served(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crdt.database, "MAX_UNITS", 10)
    await asyncio.gather(*(database.write(insert(n)) for n in range(35)))
    assert await stored(database) == list(range(35))


@pytest.mark.parametrize(
    "refused",
    [failing(LookupError("mine")), insert(98, 0), insert(97, object()), insert(96, 2**70)],
    ids=["its own error", "a constraint", "a type that SQLite has not", "a number too large"],
)
async def test_the_error_of_one_unit_undoes_only_its_own_rows(
    database: Database, refused: Callable[[sqlite3.Connection], object]
) -> None:
    await database.write(insert(0))
    outcomes = await asyncio.gather(
        database.write(insert(1)), database.write(refused), database.write(insert(2)), return_exceptions=True
    )
    assert [outcomes[0], outcomes[2]] == [1, 1]
    assert isinstance(outcomes[1], Exception)
    assert await stored(database) == [0, 1, 2]


async def test_a_batch_in_which_every_unit_fails_is_no_commit(database: Database) -> None:
    commits = database.commits
    with pytest.raises(LookupError, match="mine"):
        await database.write(failing(LookupError("mine")))
    assert database.commits == commits
    assert await stored(database) == []


async def test_an_error_of_the_disk_fails_every_caller_of_the_commit(database: Database) -> None:
    outcomes = await asyncio.gather(
        database.write(insert(1)),
        database.write(failing(sqlite3.OperationalError("disk I/O error"))),
        database.write(insert(2)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
    assert await stored(database) == []
    assert await database.write(insert(3)) == 1
    assert await stored(database) == [3]


async def test_a_full_disk_fails_the_commit_and_the_next_one_succeeds(database: Database) -> None:
    assert database._writer is not None
    await database._writer.run(lambda connection: connection.execute("PRAGMA max_page_count = 1").fetchall())
    with pytest.raises(StoreFull, match="disk is full"):
        await database.write(lambda connection: connection.execute("CREATE TABLE more (x)") and None)
    assert await database.write(insert(1)) == 1


async def test_a_commit_that_was_reported_as_failed_but_is_stored_is_acknowledged(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(witness: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    commits = database.commits
    with monkeypatch.context() as broken, capture_logs() as logs:
        broken.setattr(database._lock, "write_witness", fail)
        assert await database.write(insert(1)) == 1
    assert [entry["event"] for entry in logs] == ["commit_confirmed_after_error"]
    assert database.commits == commits + 1
    await database.write(insert(2))
    assert database.commits == commits + 2


async def test_a_witness_that_cannot_be_written_does_not_fail_the_commit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(witness: object) -> None:
        raise OSError(28, "No space left on device")

    commits = database.commits
    with monkeypatch.context() as broken, capture_logs() as logs:
        broken.setattr(database._lock, "write_witness", fail)
        assert await database.write(insert(1)) == 1
    assert [entry["event"] for entry in logs] == ["witness_not_written"]
    assert database.commits == commits + 1


def unreadable(connection: sqlite3.Connection) -> int:
    """Stands for a disk that opens a file and then fails."""
    raise sqlite3.OperationalError("disk I/O error")


async def unopenable(*arguments: object) -> None:
    """Stands for a disk that is gone."""
    raise sqlite3.OperationalError("unable to open database file")


async def test_a_file_that_cannot_be_reopened_is_tried_again_by_the_next_caller(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = database.commits
    with monkeypatch.context() as broken:
        broken.setattr(crdt.database, "_force_to_disk", unreadable)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await database.write(failing(sqlite3.OperationalError("disk I/O error")))
    with monkeypatch.context() as broken:
        broken.setattr(crdt.database, "_connect", unopenable)
        with pytest.raises(StoreUnavailable):
            await database.write(insert(1))
    assert await database.write(insert(1)) == 1
    assert database.commits == commits + 1
    assert await stored(database) == [1]


async def test_an_unexpected_error_reaches_every_caller(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> int:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(database, "_transact", broken)
        outcomes = await asyncio.gather(*(database.write(insert(n)) for n in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ZeroDivisionError] * 3
    assert await database.write(insert(4)) == 1


async def test_a_query_sees_one_commit_and_never_waits_for_the_writer(database: Database) -> None:
    await database.write(insert(1))

    def twice(connection: sqlite3.Connection) -> list[int]:
        query = "SELECT count(*) FROM t"
        before: int = connection.execute(query).fetchone()[0]
        alter(database.path, "INSERT INTO t VALUES (2)")
        return [before, connection.execute(query).fetchone()[0]]

    assert await database.read(twice) == [1, 1]
    assert await stored(database) == [1, 2]


async def test_a_broken_query_is_told_in_the_stores_words(database: Database) -> None:
    with pytest.raises(StoreUnavailable, match="no such table"):
        await database.read(lambda connection: connection.execute("SELECT * FROM absent").fetchall())


async def test_a_query_that_an_error_of_the_disk_ends_is_told_by_that_error(database: Database) -> None:
    def query(connection: sqlite3.Connection) -> None:
        connection.execute("ROLLBACK")  # as SQLite does by itself
        raise sqlite_error(sqlite3.SQLITE_IOERR_SHMSIZE)

    with pytest.raises(StoreFull):
        await database.read(query)
    assert await database.read(lambda connection: connection.execute("SELECT 1").fetchall()) == [(1,)]


async def test_closing_commits_what_waits_and_then_refuses(path: Path) -> None:
    database = await open_database(path, None)
    await database.write(lambda connection: connection.execute("CREATE TABLE t (x)") and None)
    waiting = [asyncio.create_task(database.write(insert(n))) for n in range(5)]
    await asyncio.sleep(0)
    await database.close()
    await database.close()
    assert await asyncio.gather(*waiting) == [1] * 5
    assert look(path, "SELECT count(*) FROM t") == [(5,)]
    for refused in (database.write(insert(9)), database.read(insert(9))):
        with pytest.raises(StoreClosed):
            await refused


def sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("it broke")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (sqlite_error(sqlite3.SQLITE_FULL), StoreFull),
        (sqlite_error(sqlite3.SQLITE_CORRUPT), StoreDamaged),
        (sqlite_error(sqlite3.SQLITE_CORRUPT_VTAB), StoreDamaged),
        (sqlite_error(sqlite3.SQLITE_NOTADB), StoreDamaged),
        (sqlite_error(sqlite3.SQLITE_IOERR_FSYNC), StoreUnavailable),
        (sqlite_error(sqlite3.SQLITE_BUSY), StoreUnavailable),
        (sqlite3.ProgrammingError("no code"), StoreUnavailable),
        (OSError(13, "Permission denied"), StoreUnavailable),
        (OSError("no errno"), StoreUnavailable),
    ],
)
def test_foreign_errors_are_named_at_one_edge(error: sqlite3.Error | OSError, expected: type[CrdtError]) -> None:
    translated = translate(Path("data/musher.db"), error)
    assert type(translated) is expected
    assert "data/musher.db" in str(translated)


async def test_a_database_is_made_with_its_folder_and_remembers_its_sled(tmp_path: Path) -> None:
    path = tmp_path / "data" / "of" / "musher.db"
    async with Store.open(str(path)) as store:
        made = store.sled_id
        assert made.startswith("sled-")
    async with Store.open(path) as store:
        assert store.sled_id == made
    assert look(path, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert look(path, "PRAGMA user_version") == [(SCHEMA,)]
    assert look(path, "PRAGMA journal_mode") == [("wal",)]


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


async def refused(path: Path, sled_id: str | None = None) -> CrdtError:
    """The error that opening raises; opening must leave the file alone."""
    before = content(path)
    with pytest.raises(CrdtError) as caught:
        async with Store.open(path, sled_id=sled_id):
            pass
    assert content(path) == before
    return caught.value


async def test_a_database_of_another_sled_is_refused_by_both_names(path: Path) -> None:
    async with Store.open(path, sled_id="build-1"):
        pass
    error = await refused(path, "build-2")
    assert isinstance(error, SledMismatch)
    assert "build-1" in str(error)
    assert "build-2" in str(error)
    async with Store.open(path, sled_id="build-1") as store:
        await store.append_event(event())


async def test_a_database_of_a_newer_musher_is_refused(path: Path) -> None:
    async with Store.open(path):
        pass
    alter(path, f"PRAGMA user_version = {SCHEMA + 1}")
    error = await refused(path)
    assert isinstance(error, StoreNewer)
    assert f"schema {SCHEMA + 1}" in str(error)


@pytest.mark.parametrize("found", [b"hello", b"x" * 10_000, b"\x00" * 16], ids=["short", "long", "zeros"])
async def test_a_file_that_is_no_database_is_refused(path: Path, found: bytes) -> None:
    await asyncio.to_thread(path.write_bytes, found)
    error = await refused(path)
    assert isinstance(error, StoreDamaged)
    assert "not an SQLite database" in str(error)


async def test_a_file_that_only_begins_like_a_database_is_refused(path: Path) -> None:
    await asyncio.to_thread(path.write_bytes, b"SQLite format 3\x00" + b"\xff" * 8000)
    assert isinstance(await refused(path), StoreDamaged)


async def test_another_programs_database_is_refused(path: Path) -> None:
    alter(path, "CREATE TABLE theirs (x)")
    error = await refused(path)
    assert isinstance(error, StoreDamaged)
    assert "another program" in str(error)


async def test_an_empty_file_becomes_a_database(path: Path) -> None:
    await asyncio.to_thread(path.touch)
    async with Store.open(path) as store:
        assert await store.append_event(event()) == 1


async def test_a_database_that_lost_its_first_commit_is_made_again(path: Path) -> None:
    async with Store.open(path):
        pass
    alter(path, "DELETE FROM state")
    async with Store.open(path, sled_id="build-9") as store:
        assert store.sled_id == "build-9"


async def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    """What is said of a pipe is said at once: nobody ever writes into it."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        assert "is no file: point store.path at another file" in str(await refused(path))
        with pytest.raises(StoreUnavailable, match="is no file"):
            async with StoreReader.open(path):
                pass


async def test_links_that_lead_round_in_a_circle_are_refused(path: Path) -> None:
    os.symlink(path, path)
    assert isinstance(await refused(path), StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        async with StoreReader.open(path):
            pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
async def test_a_start_on_a_full_disk_says_so(path: Path) -> None:
    lock_path(path).symlink_to("/dev/full")
    assert isinstance(await refused(path), StoreFull)


@pytest.mark.parametrize("folder", ["file/below", "/proc/musher"])
async def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    error = await refused(tmp_path / folder / "musher.db")
    assert isinstance(error, StoreUnavailable)
    assert "folder" in str(error)


async def test_a_folder_that_cannot_be_written_is_refused() -> None:
    error = await refused(Path("/proc/musher.db"))
    assert isinstance(error, StoreUnavailable)
    assert "can't be locked" in str(error)


async def test_a_migration_that_fails_leaves_no_half_made_schema(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crdt.schema.MIGRATIONS", ("CREATE TABLE good (x); CREATE TABLE bad (",))
    with pytest.raises(StoreUnavailable):
        async with Store.open(path):
            pass
    assert look(path, "SELECT count(*) FROM sqlite_master") == [(0,)]
    monkeypatch.undo()
    async with Store.open(path) as store:
        assert await store.append_event(event()) == 1
