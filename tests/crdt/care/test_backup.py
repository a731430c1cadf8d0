"""Back up: beside the service, whole, and never over another file by mistake."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from crdt import (
    BackupExists,
    Store,
    StoreDamaged,
    StoreReader,
    StoreUnavailable,
    back_up_database,
    restore_database,
    verify_database,
)
from crdt.owner import lock_path
from tests.crdt.care.life import contents, files, mode
from tests.crdt.samples import alter, event, events


async def test_a_backup_holds_what_the_database_holds(full: Path, backup: Path) -> None:
    before = files(full.parent)
    found = back_up_database(full, backup)
    assert found.problems == ()
    assert await contents(backup) == await contents(full)
    assert mode(backup) == 0o600
    assert files(full.parent).keys() - before.keys() <= {"backup.db", "musher.db-wal"}
    assert verify_database(backup) == found


async def test_a_backup_is_made_while_the_service_writes(path: Path, backup: Path, monkeypatch: Any) -> None:
    """One page at a time, a commit of the service between any two of them."""
    monkeypatch.setattr("crdt.care.files.COPIED_PAGES", 1)
    async with Store.open(path, segment_events=20) as store:
        await store.append_events(events(1, 100))
        loop = asyncio.get_running_loop()
        heads: list[int] = []

        def write_between(doing: str, done: int, total: int) -> None:
            if doing == "copying" and len(heads) < 20:
                append = asyncio.run_coroutine_threadsafe(store.append_event(event(101 + len(heads))), loop)
                heads.append(append.result(timeout=10))

        found = await asyncio.to_thread(back_up_database, path, backup, progress=write_between)
        assert heads == list(range(101, 121))
        assert found.events == 100
        async with StoreReader.open(backup) as reader:
            assert [each.event_seq for each in await reader.read_events()] == list(range(1, 101))
        assert len(await store.read_events()) == 120


async def test_a_backup_overwrites_nothing_unless_told_to(full: Path, backup: Path) -> None:
    await asyncio.to_thread(backup.write_bytes, b"precious")
    with pytest.raises(BackupExists, match="--force"):
        back_up_database(full, backup)
    assert await asyncio.to_thread(backup.read_bytes) == b"precious"
    back_up_database(full, backup, force=True)
    assert await contents(backup) == await contents(full)
    async with Store.open(full):
        for its_own in (full, full.with_name(f"{full.name}-wal"), lock_path(full)):
            before = await asyncio.to_thread(its_own.read_bytes)
            with pytest.raises(StoreUnavailable, match="name another file"):
                await asyncio.to_thread(back_up_database, full, its_own, force=True)
            assert await asyncio.to_thread(its_own.read_bytes) == before


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal", ".lock"])
async def test_a_backup_takes_no_name_that_the_database_may_need(full: Path, suffix: str) -> None:
    its_own = full.with_name(f"{full.name}{suffix}")
    linked = full.with_name("linked")
    linked.symlink_to(full.parent)
    async with Store.open(full):
        before = files(full.parent)
        for folder in (full.parent, linked):
            with pytest.raises(StoreUnavailable, match="name another file"):
                await asyncio.to_thread(back_up_database, folder / full.name, its_own, force=True)
        assert files(full.parent) == before
    its_own.unlink(missing_ok=True)
    with pytest.raises(StoreUnavailable, match="name another file"):
        back_up_database(full, its_own)
    assert not its_own.exists()


async def test_a_backup_replaces_nothing_but_a_file(full: Path, backup: Path) -> None:
    os.mkfifo(backup)
    with pytest.raises(StoreUnavailable, match="is no file: name another"):
        back_up_database(full, backup, force=True)
    assert await asyncio.to_thread(backup.is_fifo)


async def test_what_lies_beside_an_old_copy_does_not_get_into_the_backup_that_takes_its_name(
    path: Path, backup: Path
) -> None:
    """A copy that was made by hand has a WAL, which SQLite would play into any file of that name."""
    left = backup.with_name(f"{backup.name}-wal")
    async with Store.open(path, segment_events=5) as store:
        await store.append_events(events(1, 8))
        await asyncio.to_thread(shutil.copy, path.with_name(f"{path.name}-wal"), left)
        await store.append_events(events(9, 17))
        with pytest.raises(BackupExists, match=r"backup\.db-wal exists already"):
            await asyncio.to_thread(back_up_database, path, backup)
        found = await asyncio.to_thread(back_up_database, path, backup, force=True)
    assert found.events == 17
    assert verify_database(backup) == found


async def test_a_damaged_database_makes_no_backup(full: Path, backup: Path) -> None:
    back_up_database(full, backup)
    before = await asyncio.to_thread(backup.read_bytes)
    alter(full, "UPDATE snapshots SET packed_data = zeroblob(40) WHERE doc_id = 2")
    with pytest.raises(StoreDamaged, match="snapshot of document log/build-1/2"):
        back_up_database(full, backup, force=True)
    assert await asyncio.to_thread(backup.read_bytes) == before
    assert not [name for name in files(full.parent) if "unfinished" in name]


async def test_a_backup_into_a_folder_that_is_not_there_is_refused(full: Path) -> None:
    with pytest.raises(StoreUnavailable, match="absent"):
        back_up_database(full, full.parent / "absent" / "backup.db")
    with pytest.raises(StoreUnavailable, match="does not exist"):
        back_up_database(full.parent / "absent.db", full.parent / "backup.db")


async def test_two_backups_into_one_place_at_a_time_do_not_spoil_each_other(full: Path, backup: Path) -> None:
    began: list[str] = []

    def begin_another(doing: str, done: int, total: int) -> None:
        if not began:
            began.append(doing)
            back_up_database(full, backup)

    with pytest.raises(BackupExists):
        back_up_database(full, backup, progress=begin_another)
    assert verify_database(backup).problems == ()
    back_up_database(full, backup, force=True, progress=begin_another)
    assert {each for each in files(backup.parent) if each.startswith(backup.name)} == {backup.name}


async def test_links_that_lead_round_in_a_circle_are_no_database(full: Path, backup: Path) -> None:
    circle = full.with_name("circle.db")
    circle.symlink_to(circle)
    for care in (back_up_database, restore_database):
        with pytest.raises(StoreUnavailable, match="does not exist"):
            care(circle, backup)
    with pytest.raises(StoreUnavailable, match="does not exist"):
        restore_database(full, circle)


async def test_a_backup_that_can_not_be_begun_says_why(full: Path) -> None:
    """Its unfinished file, whose name is longer, can neither be made nor removed."""
    with pytest.raises(StoreUnavailable, match=r"File name too long.*check that its folder"):
        back_up_database(full, full.with_name("b" * 250))
