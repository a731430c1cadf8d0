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

from crdt import Store, StoreBusy, StoreDamaged
from crdt.owner import OwnerLock, Witness, lock_path
from tests.crdt.samples import event, events

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
