from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from bot import typing_notice as module
from bot.matrix import RateLimited, Unreachable
from bot.pace import Pace
from bot.typing_notice import SHOW_AFTER_S, SHOWN_FOR_MS, only_while_open, typing_notice
from tests.bot.edge import ROOM, until


class Switch:
    """Notes how the notice is switched; `act` is what happens besides."""

    def __init__(self, act: Callable[[bool], Awaitable[None]] | None = None) -> None:
        self.notes: list[bool] = []
        self._act = act

    async def __call__(self, room_id: str, on: bool, timeout_ms: int) -> None:
        assert (room_id, timeout_ms) == (ROOM, SHOWN_FOR_MS)
        self.notes.append(on)
        if self._act is not None:
            await self._act(on)


async def fails(_on: bool) -> None:
    raise Unreachable("https://example.org", "no connection")


async def breaks(_on: bool) -> None:
    raise RuntimeError("Session is closed")


async def hangs(_on: bool) -> None:
    await asyncio.Event().wait()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHOW_AFTER_S", 0.0)


def test_the_constants_are_those_that_people_were_promised() -> None:
    assert SHOW_AFTER_S == 0.3
    assert SHOWN_FOR_MS > module.REFRESH_AFTER_S * 1000


async def test_a_quick_answer_shows_no_notice() -> None:
    switch = Switch()
    async with typing_notice(switch, ROOM):
        await asyncio.sleep(0)
    async with typing_notice(switch, ROOM):
        pass
    assert switch.notes == []


@pytest.mark.usefixtures("at_once")
async def test_a_notice_is_shown_and_switched_off_at_the_end() -> None:
    switch = Switch()
    async with typing_notice(switch, ROOM):
        await until(lambda: switch.notes)
    assert switch.notes == [True, False]


@pytest.mark.usefixtures("at_once")
async def test_a_notice_is_refreshed_while_the_work_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFRESH_AFTER_S", 0.001)
    switch = Switch()
    async with typing_notice(switch, ROOM):
        await until(lambda: len(switch.notes) >= 3)
    assert switch.notes[-2:] == [True, False]


@pytest.mark.usefixtures("at_once")
async def test_a_notice_is_switched_off_when_the_work_fails() -> None:
    switch = Switch()
    with pytest.raises(ZeroDivisionError):
        async with typing_notice(switch, ROOM):
            await until(lambda: switch.notes)
            raise ZeroDivisionError
    assert switch.notes == [True, False]


@pytest.mark.usefixtures("at_once")
async def test_a_notice_is_switched_off_when_the_work_is_cancelled() -> None:
    switch = Switch()

    async def work() -> None:
        async with typing_notice(switch, ROOM):
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    await until(lambda: switch.notes)
    working.cancel()
    await asyncio.wait({working})
    assert working.cancelled()
    assert switch.notes == [True, False]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("trouble", [fails, breaks])
async def test_errors_of_the_notice_do_not_matter(trouble: Callable[[bool], Awaitable[None]]) -> None:
    switch = Switch(trouble)
    async with typing_notice(switch, ROOM):
        await until(lambda: switch.notes)
    assert switch.notes == [True, False]


@pytest.mark.usefixtures("at_once")
async def test_a_homeserver_that_hangs_holds_up_the_answer_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWITCH_TIMEOUT_S", 0.01)
    switch = Switch(hangs)
    async with asyncio.timeout(30):
        async with typing_notice(switch, ROOM):
            await until(lambda: switch.notes)
    assert switch.notes[-1] is False


@pytest.mark.usefixtures("at_once")
async def test_a_cancellation_while_the_notice_is_switched_off_reaches_the_caller() -> None:
    gate = asyncio.Event()

    async def waits_when_off(on: bool) -> None:
        if not on:
            await gate.wait()

    switch = Switch(waits_when_off)
    went_on = False

    async def work() -> None:
        nonlocal went_on
        async with typing_notice(switch, ROOM):
            await until(lambda: switch.notes)
        went_on = True

    working = asyncio.create_task(work())
    await until(lambda: len(switch.notes) == 2)
    working.cancel()
    await asyncio.wait({working})
    gate.set()
    assert working.cancelled()
    assert not went_on


async def test_no_notice_is_sent_while_the_homeserver_is_to_be_spared() -> None:
    pace, switch = Pace(), Switch()
    typing = only_while_open(switch, pace)
    await typing(ROOM, True, SHOWN_FOR_MS)
    pace.failed(Unreachable("https://example.org", "no connection"))
    await typing(ROOM, True, SHOWN_FOR_MS)
    pace.worked()
    await typing(ROOM, False, SHOWN_FOR_MS)
    assert switch.notes == [True, False]


async def test_after_a_notice_that_failed_there_is_none_for_a_while() -> None:
    now = 1000.0
    pace, switch = Pace(clock=lambda: now), Switch(fails)
    typing = only_while_open(switch, pace)
    with pytest.raises(Unreachable):
        await typing(ROOM, True, SHOWN_FOR_MS)
    assert not pace.open, "others find out whether it is only the notice"
    pace.worked()
    for _ in range(20):
        await typing(ROOM, True, SHOWN_FOR_MS)
    assert switch.notes == [True]
    now += module.PAUSE_S
    with pytest.raises(Unreachable):
        await typing(ROOM, True, SHOWN_FOR_MS)


async def test_a_homeserver_that_asks_for_a_pause_gets_it_from_all() -> None:
    async def limits(_on: bool) -> None:
        raise RateLimited("https://example.org", 30)

    pace = Pace()
    with pytest.raises(RateLimited):
        await only_while_open(Switch(limits), pace)(ROOM, True, SHOWN_FOR_MS)
    assert not pace.open
