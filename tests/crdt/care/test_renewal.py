"""Copies that were put in place by hand: they begin anew."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from crdt import Store, StoreDamaged, back_up_database, restore_database
from crdt.care.renewal import NO_REPLY
from crdt.settings import RESTORED_AT_MS
from tests.crdt.samples import ROOM, alter, look


async def test_a_backup_that_is_put_in_place_by_hand_begins_anew(full: Path, backup: Path, tmp_path: Path) -> None:
    back_up_database(full, backup)
    place = tmp_path / "new" / "musher.db"
    place.parent.mkdir()
    shutil.copy(backup, place)
    async with Store.open(place, segment_events=5) as store:
        state = store._database.state
        assert await store.read_cursor() is None
        assert await store.waiting_sessions() == []
        assert (await store.read_transcript(ROOM))[-1].text == NO_REPLY
    async with Store.open(place, segment_events=5) as store:
        assert store._database.state.database_id == state.database_id
        assert len(await store.read_events()) == 17


async def test_another_history_that_is_put_in_place_begins_anew(full: Path, backup: Path) -> None:
    back_up_database(full, backup)
    was = look(full, "SELECT database_id, writer_id FROM state")
    aside = restore_database(full, backup).aside
    assert aside is not None
    os.replace(aside, full)
    async with Store.open(full, segment_events=5) as store:
        assert await store.read_cursor() is None
        assert await store.read_setting(RESTORED_AT_MS) is not None
        assert len(await store.read_events()) == 17
    ((database_id, writer_id),) = look(full, "SELECT database_id, writer_id FROM state")
    assert database_id != was[0][0]
    assert writer_id != was[0][1]


async def test_a_copy_whose_open_turn_is_damaged_is_refused_and_left_as_it_is(full: Path, backup: Path) -> None:
    back_up_database(full, backup)
    of_room = f"SELECT doc_id FROM documents WHERE name = 'session/{ROOM}/1'"
    alter(backup, f"UPDATE ops SET data = zeroblob(9) WHERE seq = 2 AND doc_id IN ({of_room})")
    before = await asyncio.to_thread(backup.read_bytes)
    with pytest.raises(StoreDamaged, match=f"op 2 of document session/{ROOM}/1 was altered"):
        async with Store.open(backup):
            pass
    assert look(backup, "SELECT database_id FROM state") == look(full, "SELECT database_id FROM state")
    assert len(before) == len(await asyncio.to_thread(backup.read_bytes))
