"""One owner of the database, and the witness of its newest commit."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from crdt import Store, StoreBusy, StoreDamaged, StoreUnavailable
from crdt.owner import OwnerLock, Witness, lock_path
from tests.crdt.samples import ROOM, event, events, message

OPEN_AND_REPORT = """
import asyncio, sys
from crdt import Store

async def main() -> None:
    try:
        async with Store.open(sys.argv[1]):
            print("open", flush=True)
            sys.stdin.readline()
    except Exception as error:
        print(type(error).__name__, error, flush=True)

asyncio.run(main())
"""


async def start_other_process(path: Path) -> tuple[asyncio.subprocess.Process, str]:
    """A process that opens the store; it comes with what it says first."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OPEN_AND_REPORT, str(path), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    while True:
        said = (await process.stdout.readline()).decode()
        if " [" not in said:  # not a line of the log
            return process, said


async def test_a_second_process_is_told_who_owns_the_database(path: Path, store: Store) -> None:
    process, said = await start_other_process(path)
    assert await process.wait() == 0
    assert said.startswith("StoreBusy")
    assert f"pid {os.getpid()}" in said
    assert await store.append_event(event()) == 1


async def test_a_database_that_another_process_owns_is_busy_until_that_process_is_killed(path: Path) -> None:
    process, said = await start_other_process(path)
    assert said == "open\n"
    with pytest.raises(StoreBusy, match=f"pid {process.pid}"):
        async with Store.open(path):
            pass
    process.kill()
    await process.wait()
    async with Store.open(path) as store:
        assert await store.append_event(event()) == 1


async def test_a_second_store_of_the_same_process_is_refused(path: Path, store: Store) -> None:
    for name in (path, str(path)):
        with pytest.raises(StoreBusy):
            async with Store.open(name):
                pass
    assert await store.append_event(event()) == 1


async def test_a_link_to_the_database_leads_to_the_same_lock(path: Path, store: Store) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    with pytest.raises(StoreBusy):
        async with Store.open(link):
            pass


async def test_behind_a_link_a_wal_that_is_deleted_is_noticed_too(path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    async with Store.open(link) as store:
        await store.append_event(event(1))
        assert (await store.statistics()).wal_bytes > 0
        wal = path.with_name(f"{path.name}-wal")
        wal.rename(aside := wal.with_name("aside"))
        with pytest.raises(StoreUnavailable, match="moved, deleted or replaced"):
            await store.append_event(event(2))
        aside.rename(wal)
        assert await store.append_event(event(2)) == 2


async def test_a_closed_store_can_be_opened_again(path: Path) -> None:
    for number in range(1, 4):
        async with Store.open(path) as store:
            assert await store.append_event(event(number)) == number


async def test_only_the_owner_of_the_files_can_read_them(path: Path) -> None:
    before = os.umask(0o022)
    try:
        async with Store.open(path) as store:
            await store.append_events(events(1, 50))
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("musher.db", "musher.db-wal", "musher.db-shm", "musher.db.lock"), 0o600)


async def test_a_folder_that_the_store_makes_is_closed_to_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        async with Store.open(tmp_path / "data" / "musher.db"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


async def test_an_old_copy_in_the_place_of_the_database_is_refused_with_what_is_missing(path: Path) -> None:
    async with Store.open(path) as store:
        await store.append_event(event(1))
    copy = path.with_name("copy.db")
    shutil.copy(path, copy)
    async with Store.open(path) as store:
        before = store._database.commits
        for number in range(2, 9):
            await store.append_event(event(number))
        missing = store._database.commits - before
    newest = path.with_name("newest.db")
    os.replace(path, newest)
    os.replace(copy, path)
    with pytest.raises(StoreDamaged, match=f"the newest {missing} commits are missing"):
        async with Store.open(path):
            pass
    os.replace(newest, path)
    async with Store.open(path) as store:
        assert len(await store.read_events()) == 8


async def test_a_database_that_is_ahead_of_its_witness_is_accepted(path: Path) -> None:
    async with Store.open(path) as store:
        await store.append_event(event(1))
    witness = lock_path(path)
    before = await asyncio.to_thread(witness.read_bytes)
    async with Store.open(path) as store:
        await store.append_event(event(2))
    await asyncio.to_thread(witness.write_bytes, before)
    async with Store.open(path) as store:
        assert len(await store.read_events()) == 2


async def test_another_database_in_the_place_of_this_one_is_accepted_and_logged(path: Path, tmp_path: Path) -> None:
    async with Store.open(path) as store:
        await store.append_events(events(1, 3))
    async with Store.open(tmp_path / "other.db"):
        pass
    os.replace(tmp_path / "other.db", path)
    with capture_logs() as logs:
        async with Store.open(path) as store:
            assert await store.read_events() == []
    assert "database_replaced" in [entry["event"] for entry in logs]


@pytest.mark.parametrize("content", [b"", b"pid 1", b"x" * 24 + b"not a witness at all\n", b"x" * 24 + b"\xff\xfe"])
async def test_a_lock_file_without_a_witness_says_nothing(path: Path, content: bytes) -> None:
    async with Store.open(path) as store:
        await store.append_event(event(1))
    await asyncio.to_thread(lock_path(path).write_bytes, content)
    async with Store.open(path) as store:
        assert len(await store.read_events()) == 1


async def test_a_witness_that_was_altered_in_one_place_still_tells_of_lost_commits(path: Path) -> None:
    async with Store.open(path) as store:
        await store.append_event(event())
    old = path.read_bytes()  # noqa: ASYNC240 - small
    async with Store.open(path) as store:
        await store.append_event(event())
    path.write_bytes(old)  # noqa: ASYNC240
    sound = lock_path(path).read_bytes()
    for place in range(24, len(sound)):
        altered = bytearray(sound)
        altered[place] ^= 1
        lock_path(path).write_bytes(altered)
        with pytest.raises(StoreDamaged, match="the newest 1 commits are missing"):
            async with Store.open(path):
                pass


async def test_a_witness_that_was_altered_twice_says_nothing_and_is_told_of(path: Path) -> None:
    """It must not make the database look like another one, which would give up its open work."""
    async with Store.open(path) as store:
        await store.admit([message("$1")], cursor="s1")
    sound = await asyncio.to_thread(lock_path(path).read_bytes)
    length = (len(sound) - 24) // 2
    for place in range(24, 24 + length - 1):
        altered = bytearray(sound)
        altered[place] ^= 1
        altered[place + length] ^= 1
        await asyncio.to_thread(lock_path(path).write_bytes, altered)
        with capture_logs() as logs:
            async with Store.open(path) as store:
                assert await store.read_cursor() == "s1"
                assert [one.key for one in await store.waiting(ROOM)] == ["$1"]
        assert "witness_unreadable" in [entry["event"] for entry in logs]


async def test_a_database_with_a_second_name_is_refused(path: Path) -> None:
    """Lock and WAL go by the name: under two of them, two services would write into one file."""
    async with Store.open(path) as store:
        await store.append_event(event())
    other = path.with_name("other.db")
    os.link(path, other)
    for name in (path, other):
        with pytest.raises(StoreUnavailable, match="has 2 names"):
            async with Store.open(name):
                pass
    other.unlink()
    async with Store.open(path) as store:
        assert await store.append_event(event()) == 2


@pytest.mark.parametrize("suffix", ["", "-wal", ".lock"])
async def test_nothing_is_acknowledged_into_a_file_that_was_moved_away(path: Path, suffix: str) -> None:
    file, elsewhere = path.with_name(path.name + suffix), path.with_name("elsewhere")
    async with Store.open(path) as store:
        assert await store.append_event(event()) == 1
        file.rename(elsewhere)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="moved, deleted or replaced"):
                await store.append_event(event())
        elsewhere.rename(file)
        assert await store.append_event(event()) == 2
    async with Store.open(path) as store:
        assert len(await store.read_events()) == 2


async def test_nothing_is_acknowledged_into_a_file_that_was_replaced(path: Path) -> None:
    async with Store.open(path) as store:
        assert await store.append_event(event()) == 1
        copy = path.with_name("copy.db")
        shutil.copy(path, copy)
        copy.replace(path)
        with pytest.raises(StoreUnavailable, match="moved, deleted or replaced"):
            await store.append_event(event())


async def test_who_lost_the_lock_file_writes_nothing_beside_the_next_owner(path: Path) -> None:
    async with Store.open(path) as store:
        await store.append_event(event())
        lock_path(path).unlink()
        async with Store.open(path) as next_owner:
            for number in range(2, 5):
                assert await next_owner.append_event(event()) == number
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="lock was moved, deleted or replaced"):
                await store.append_event(event())
    async with Store.open(path) as store:
        assert len(await store.read_events()) == 4


async def test_a_folder_that_is_gone_for_a_while_is_an_error_that_passes(path: Path) -> None:
    path = path.parent / "data" / path.name
    async with Store.open(path) as store:
        path.parent.rename(path.parent.with_name("moved"))
        with pytest.raises(StoreUnavailable):
            await store.statistics()
        with pytest.raises(StoreUnavailable):
            await store.append_event(event())
        path.parent.with_name("moved").rename(path.parent)
        assert (await store.statistics()).head == 0
        assert await store.append_event(event()) == 1


def test_the_witness_is_what_was_written_last(path: Path) -> None:
    lock = OwnerLock.acquire(path)
    assert lock.read_witness() is None
    lock.write_witness(Witness(41, "a" * 32))
    lock.write_witness(Witness(42, "b" * 32))
    assert lock.read_witness() == Witness(42, "b" * 32)
    lock.release()
    again = OwnerLock.acquire(path)
    assert again.read_witness() == Witness(42, "b" * 32)
    again.release()
