from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bot import texts
from bot.damage import DamagedRooms
from bot.health import Health
from crdt import Store, StoreDamaged, StoreFull
from tests.bot.edge import ROOM

OTHER = "!other:example.org"
DAMAGE = StoreDamaged("musher.db", "document session/x has lost bytes")


def nobody() -> None:
    """Who is woken by what stands in the outbox."""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store.open(tmp_path / "musher.db") as store:
        yield store


async def test_a_damaged_room_is_told_of_once_and_shows_in_the_readiness(store: Store) -> None:
    health = Health()
    rooms = DamagedRooms(store, health, nobody)
    assert health.ready()
    with capture_logs() as logs:
        await asyncio.gather(*(rooms.found(ROOM, DAMAGE) for _ in range(5)))
    assert [line["session"] for line in logs if line["event"] == "room_damaged"] == [ROOM]
    assert "restore a backup" in health.unready()["sessions"]
    assert ROOM not in health.unready()["sessions"]


async def test_the_room_gets_one_notice_however_often_the_service_starts(store: Store) -> None:
    for _ in range(3):
        await DamagedRooms(store, Health(), nobody).found(ROOM, DAMAGE)
    (notice,) = await store.due_deliveries()
    assert notice.session_id == ROOM
    assert texts.DAMAGED in notice.content
    await store.delivery_sent(notice.delivery_id, "$event")
    await DamagedRooms(store, Health(), nobody).found(ROOM, DAMAGE)
    assert await store.due_deliveries() == []


async def test_it_is_ready_again_once_each_of_them_was_answered(store: Store) -> None:
    health = Health()
    rooms = DamagedRooms(store, health, nobody)
    await rooms.found(ROOM, DAMAGE)
    await rooms.found(OTHER, DAMAGE)
    rooms.answered(ROOM)
    assert not health.ready()
    rooms.answered(OTHER)
    assert health.ready()


async def test_a_room_that_a_full_disk_keeps_from_being_told_is_told_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*arguments: object) -> None:
        raise StoreFull("musher.db")

    woken: list[int] = []
    rooms = DamagedRooms(store, Health(), lambda: woken.append(1))
    with capture_logs() as logs:
        with monkeypatch.context() as full_disk:
            full_disk.setattr(store, "settle", refuse)
            for _ in range(2):
                with pytest.raises(StoreFull):
                    await rooms.found(ROOM, DAMAGE)
        assert not woken
        for _ in range(2):
            await rooms.found(ROOM, DAMAGE)
    assert [line["event"] for line in logs].count("room_damaged") == 1
    assert len(await store.due_deliveries()) == len(woken) == 1
