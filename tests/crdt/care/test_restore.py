"""Restore: equal content, nothing answered again, the old file kept."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from crdt import (
    Store,
    StoreBusy,
    StoreDamaged,
    StoreReader,
    StoreUnavailable,
    back_up_database,
    restore_database,
    verify_database,
)
from crdt.care import restore as restoring
from crdt.care.renewal import NO_REPLY, RESTORED
from crdt.owner import lock_path
from crdt.settings import BACKUP_MADE_AT_MS, RESTORED_AT_MS
from tests.crdt.care.life import contents, files, mode
from tests.crdt.disk import Call, library, watched
from tests.crdt.samples import ROOM, alter, event, events, look, message


async def test_a_restored_backup_has_equal_content_and_no_open_work(full: Path, backup: Path) -> None:
    back_up_database(full, backup)
    async with Store.open(full) as store:
        was = store._database.state
        await store.append_events(events(18, 30))
    restored = restore_database(full, backup)
    assert restored.verification.problems == verify_database(full).problems == ()
    now, then = await contents(full), await contents(backup)
    for part in ("log", "dedupe"):
        assert now[part] == then[part]
    async with Store.open(full, segment_events=5) as store:
        state = store._database.state
        assert state.sled_id == was.sled_id
        assert state.database_id != was.database_id
        assert state.writer_id != was.writer_id
        assert await store.read_cursor() is None
        assert int(await store.read_setting(RESTORED_AT_MS) or 0) > 1_600_000_000_000
        assert await store.read_setting(BACKUP_MADE_AT_MS) is None
        assert await store.read_setting("device") == "ABC"
        assert await store.waiting_sessions() == []
        assert [each.key for each in await store.waiting(ROOM)] == ["$context"]
        *earlier, asked, answer = await store.read_transcript(ROOM)
        assert earlier == then["transcripts"][1][:-1]  # type: ignore[index]
        assert (asked.role, asked.key) == ("user", "$open")
        assert (answer.role, answer.key, answer.text, answer.failed) == ("assistant", "$open", NO_REPLY, True)
        assert [(each.delivery_id, each.attempts, each.first_attempt_at) for each in await store.due_deliveries()] == [
            ("d1", 1, 0.0),
            ("d2", 1, 0.0),
        ]
        assert await store.append_event(event(18)) == 18
        assert (await store.begin_turn(ROOM, "$next", "go on")).lines[-1].startswith('pipeline_event story_id="18"')
        assert await store.admit([message("$open"), message("$waiting")]) == []
    outcomes = dict(look(full, "SELECT key, outcome FROM inbox WHERE key IN ('$open', '$waiting')"))
    assert outcomes == {"$open": RESTORED, "$waiting": RESTORED}


async def test_what_was_replaced_is_kept_and_can_be_restored_itself(full: Path, backup: Path) -> None:
    back_up_database(full, backup)
    async with Store.open(full) as store:
        await store.append_event(event(18))
        killed = full.parent / "killed"
        killed.mkdir()
        for name in ("musher.db", "musher.db-wal", "musher.db.lock"):
            shutil.copy(full.with_name(name), killed)
    path = killed / "musher.db"
    aside = restore_database(path, backup).aside
    assert aside is not None
    assert aside.name.startswith("musher.db.replaced-20")
    async with StoreReader.open(path) as reader:
        assert len(await reader.read_events()) == 17
    assert restore_database(path, aside).verification.events == 18
    async with Store.open(path) as store:
        assert len(await store.read_events()) == 18


async def test_a_database_is_restored_where_there_was_none(full: Path, backup: Path, tmp_path: Path) -> None:
    back_up_database(full, backup)
    place = tmp_path / "elsewhere" / "musher.db"
    assert restore_database(place, backup).aside is None
    async with Store.open(place) as store:
        assert len(await store.read_events()) == 17
    assert {name: mode(place.parent / name) for name in files(place.parent)} == {
        "musher.db": 0o600,
        "musher.db.lock": 0o600,
    }


async def test_behind_a_link_a_database_is_restored_where_it_stands(full: Path, backup: Path) -> None:
    """There may be no room for it where the link is, and its lock and WAL are not there either."""
    back_up_database(full, backup)
    link = full.with_name("link.db")
    link.symlink_to(full)
    restored = restore_database(link, backup)
    assert link.is_symlink()
    assert restored.aside is not None
    assert restored.aside.name.startswith(f"{full.name}.replaced-")
    async with Store.open(full) as store:
        assert len(await store.read_events()) == 17


async def test_a_folder_in_the_database_s_place_is_not_moved_away(full: Path, backup: Path) -> None:
    back_up_database(full, backup)
    with pytest.raises(StoreUnavailable, match=r"is no file: point store\.path"):
        restore_database(full.parent, backup)
    assert await asyncio.to_thread(full.is_file)


async def test_nothing_is_restored_beside_the_owner(full: Path, backup: Path) -> None:
    back_up_database(full, backup)
    async with Store.open(full):
        with pytest.raises(StoreBusy):
            restore_database(full, backup)


def damaged(backup: Path) -> Iterator[bytes]:
    whole = backup.read_bytes()
    yield b""
    yield b"not a database at all"
    yield whole[: len(whole) // 2]
    at = whole.index(b"GatesStarted") + 3
    yield whole[:at] + b"X" + whole[at + 1 :]


async def test_a_damaged_backup_replaces_nothing(full: Path, backup: Path) -> None:
    back_up_database(full, backup)
    before = await contents(full)
    for content in damaged(backup):
        await asyncio.to_thread(backup.write_bytes, content)
        with pytest.raises((StoreDamaged, StoreUnavailable)) as caught:
            restore_database(full, backup)
        assert str(backup) in str(caught.value)
        assert await contents(full) == before
    for wrong in (full, full.with_name("absent.db")):
        with pytest.raises(StoreUnavailable):
            restore_database(full, wrong)
    assert not [name for name in files(full.parent) if "restoring" in name or "replaced" in name]


async def test_a_backup_with_the_name_of_an_unfinished_restore_is_left_alone(full: Path) -> None:
    backup = full.with_name(f"{full.name}.restoring")
    back_up_database(full, backup)
    alter(backup, "UPDATE snapshots SET packed_data = zeroblob(40) WHERE doc_id = 2")
    before = files(full.parent)
    with pytest.raises(StoreUnavailable, match="rename it"):
        restore_database(full, backup)
    assert files(full.parent) == before


async def test_a_restore_that_is_broken_off_is_named_and_can_be_repeated(
    full: Path, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up_database(full, backup)

    def die(made: Path, place: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(restoring, "put_in_place", die)
        restore_database(full, backup)
    for refuse in (verify_database, lambda path: back_up_database(path, backup, force=True)):
        with pytest.raises(StoreDamaged, match=r"the file is gone, and .*'musher db restore"):
            refuse(full)
    with pytest.raises(StoreDamaged, match="the file is gone"):
        async with Store.open(full):
            pass
    restore_database(full, backup)
    async with Store.open(full) as store:
        assert len(await store.read_events()) == 17


@pytest.mark.skipif(library() is None, reason="SQLite is built into this Python and can't be watched")
async def test_a_first_start_that_was_broken_off_leaves_nothing_that_empties_a_restored_backup(
    full: Path, backup: Path, tmp_path: Path
) -> None:
    """Before there is a WAL, there is a rollback journal: it says that the file was empty."""
    back_up_database(full, backup)
    born, killed = tmp_path / "born" / "musher.db", tmp_path / "killed"

    def kill_before_the_header(call: Call, put: object) -> None:
        if call.kind == "write" and call.path == born and not killed.exists():
            shutil.copytree(born.parent, killed)

    with watched(kill_before_the_header):
        async with Store.open(born):
            pass
    left = killed / "musher.db"
    assert (killed / "musher.db-journal").stat().st_size > 0
    restore_database(left, backup)
    async with Store.open(left, segment_events=5) as store:
        assert [each.event_seq for each in await store.read_events()] == list(range(1, 18))


async def test_a_database_that_was_emptied_is_refused(full: Path) -> None:
    await asyncio.to_thread(os.truncate, full, 0)
    with pytest.raises(StoreDamaged, match="the file is empty, and"):
        async with Store.open(full):
            pass
    await asyncio.to_thread(full.unlink)
    await asyncio.to_thread(lock_path(full).unlink)
    async with Store.open(full) as store:
        assert await store.read_events() == []
