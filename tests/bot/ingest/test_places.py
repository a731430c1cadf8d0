from __future__ import annotations

import asyncio

import pytest

from bot.ingest.places import Places
from bot.ingest.refusals import Overloaded


async def test_a_full_house_turns_away_who_can_not_wait() -> None:
    places = Places(1)
    async with places.take():
        with pytest.raises(Overloaded):
            async with places.take():
                raise AssertionError("there was no place")
    async with places.take():
        pass


async def test_who_can_wait_is_let_in_when_somebody_leaves_and_only_for_so_long() -> None:
    places = Places(1)
    inside = asyncio.Event()

    async def come_in() -> None:
        async with places.take(10.0):
            inside.set()

    async with places.take():
        with pytest.raises(Overloaded):
            async with places.take(0.001):
                raise AssertionError("there was no place")
        waiting = asyncio.create_task(come_in())
        await asyncio.sleep(0)
        assert not inside.is_set()
    await asyncio.wait_for(waiting, 30)
    assert inside.is_set()


async def test_who_gives_up_waiting_takes_no_place_with_them() -> None:
    places = Places(1)

    async def come_in() -> None:
        async with places.take(10.0):
            raise AssertionError("nobody left")

    async with places.take():
        waiting = asyncio.create_task(come_in())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with places.take():
        pass


async def test_a_house_that_closes_lets_nobody_wait() -> None:
    places = Places(1)

    async def come_in() -> None:
        async with places.take(3_600.0):
            raise AssertionError("there was no place")

    async with places.take():
        waiting = asyncio.create_task(come_in())
        await asyncio.sleep(0)
        places.close()
        for turned_away in (waiting, come_in()):
            with pytest.raises(Overloaded):
                await asyncio.wait_for(turned_away, 30)
    async with places.take():  # who need not wait is let in
        pass
