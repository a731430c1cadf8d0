"""Whether files still stand where they were opened: the same answer with Linux's own call and without it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from crdt import Store, StoreUnavailable, in_place, verify_database
from tests.crdt.breakage import fail_after_commit
from tests.crdt.samples import event


@pytest.fixture(params=["statx", "stat"])
def call(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the system is asked: as Linux can be, and as others are."""
    if request.param == "stat":
        monkeypatch.setattr(in_place, "_statx", None)
    elif in_place._statx is None:
        pytest.skip("the C library has no statx")
    return str(request.param)


@pytest.mark.usefixtures("call")
@pytest.mark.parametrize("name", ["musher.db", "Mäuse 犬.db", os.fsdecode(b"\xff.db")])
def test_files_are_told_by_number_and_device(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    status = path.stat()
    number_and_device = (status.st_ino, os.major(status.st_dev), os.minor(status.st_dev))
    assert list(in_place.files_of(path).values()) == [number_and_device, None, None]


@pytest.mark.usefixtures("call")
async def test_a_file_that_was_replaced_is_noticed_and_so_is_its_return(path: Path) -> None:
    aside, copy = path.with_name("aside.db"), path.with_name("copy.db")
    async with Store.open(path) as store:
        assert await store.append_event(event()) == 1
        shutil.copy(path, copy)
        shutil.move(path, aside)
        shutil.move(copy, path)
        with pytest.raises(StoreUnavailable, match="moved, deleted or replaced"):
            await store.append_event(event())
        shutil.move(aside, path)
        assert await store.append_event(event()) == 2


async def test_a_call_that_the_system_refuses_is_made_up_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Store.open(path) as store:
        monkeypatch.setattr(in_place, "_statx", lambda *_: -1)
        assert await store.append_event(event()) == 1


async def test_a_relative_path_means_the_folder_in_which_the_store_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        monkeypatch.chdir(folder)
        async with Store.open("musher.db", sled_id="build-1", segment_events=2) as store:
            await store.append_event(event())
    monkeypatch.chdir(here)
    async with Store.open("musher.db", segment_events=2) as store:
        monkeypatch.chdir(there)
        assert await store.append_event(event()) == 2
        await store.housekeep()
        assert (await store.statistics()).wal_bytes == (here / "musher.db-wal").stat().st_size
        fail_after_commit(store)
        assert await store.append_event(event()) == 3
    assert [verify_database(folder / "musher.db").events for folder in (here, there)] == [3, 1]
