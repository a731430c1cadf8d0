from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest
from structlog.testing import capture_logs

from bot.lanes import Lanes
from tests.bot.edge import until

PATIENCE_S = 5.0


class Workplace:
    """Work that waits for a gate, if the room has one, and notes when it begins and ends."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.errors: dict[str, BaseException] = {}
        self.more: dict[str, bool] = {}
        self.running = 0
        self.most_running = 0
        self.runs: defaultdict[str, int] = defaultdict(int)

    def gate(self, room: str) -> asyncio.Event:
        return self.gates.setdefault(room, asyncio.Event())

    async def __call__(self, room: str) -> bool:
        self.runs[room] += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.notes.append(f"{room} begins")
        try:
            if room in self.gates:
                await self.gates[room].wait()
            await asyncio.sleep(0)
            if room in self.errors:
                raise self.errors[room]
            self.notes.append(f"{room} ends")
        finally:
            self.running -= 1
        return self.more.pop(room, False)


@pytest.fixture
def work() -> Workplace:
    return Workplace()


async def test_a_room_never_works_twice_at_once_and_a_wake_during_its_work_is_not_lost(work: Workplace) -> None:
    lanes = Lanes(work, parallel=4)
    gate = work.gate("a")
    lanes.wake("a")
    await until(lambda: work.running)
    for _ in range(3):
        lanes.wake("a")
    gate.set()
    await lanes.drain()
    assert work.notes == ["a begins", "a ends"] * 2


async def test_work_that_may_have_more_is_done_again_until_it_has_none(work: Workplace) -> None:
    lanes = Lanes(work, parallel=1)
    work.more["a"] = True
    lanes.wake("a")
    lanes.wake("b")
    await lanes.drain()
    assert work.notes == ["a begins", "a ends", "b begins", "b ends", "a begins", "a ends"]


async def test_rooms_work_beside_each_other_but_no_more_than_allowed(work: Workplace) -> None:
    lanes = Lanes(work, parallel=3)
    for n in range(10):
        work.gate(f"room {n}")
        lanes.wake(f"room {n}")
    await until(lambda: work.running == 3)
    for gate in work.gates.values():
        gate.set()
    await lanes.drain()
    assert work.most_running == 3
    assert set(work.runs.values()) == {1}
    assert len(work.runs) == 10


async def test_an_error_of_one_room_is_logged_once_and_the_others_go_on(work: Workplace) -> None:
    lanes = Lanes(work, parallel=1)
    work.errors["bad"] = RuntimeError("broken")
    with capture_logs() as logs:
        for room in ("bad", "good"):
            lanes.wake(room)
        await lanes.drain()
    assert work.runs == {"bad": 1, "good": 1}
    assert [(line["event"], line["session"]) for line in logs] == [("room_work_failed", "bad")]
    assert logs[0]["exc_info"] is work.errors["bad"]
    del work.errors["bad"]
    lanes.wake("bad")
    await lanes.drain()
    assert work.notes[-1] == "bad ends"


class Panic(BaseException):
    """What a native extension raises when it gives up."""


async def test_no_lane_dies_without_a_word_even_of_a_panic(work: Workplace) -> None:
    lanes = Lanes(work, parallel=1)
    work.errors["bad"] = Panic()
    with capture_logs() as logs:
        lanes.wake("bad")
        await lanes.drain()
    assert [line["event"] for line in logs] == ["room_work_failed"]


async def test_a_wake_during_work_that_fails_is_not_lost(work: Workplace) -> None:
    lanes = Lanes(work, parallel=1)
    work.errors["a"] = RuntimeError("broken")
    gate = work.gate("a")
    lanes.wake("a")
    await until(lambda: work.running)
    lanes.wake("a")
    gate.set()
    with capture_logs():
        await lanes.drain()
    assert work.runs["a"] == 2


async def test_a_wake_at_any_step_of_the_loop_is_worked_afterwards() -> None:
    todo = 0
    done = 0

    async def work(_room: str) -> bool:
        nonlocal todo, done
        taken, todo = todo, 0
        await asyncio.sleep(0)
        done += taken
        return False

    lanes = Lanes(work, parallel=1)
    for steps in range(40):
        todo += 1
        lanes.wake("a")
        for _ in range(steps % 8):
            await asyncio.sleep(0)
    await lanes.drain()
    assert (todo, done) == (0, 40)


async def test_a_room_without_work_leaves_nothing_behind(work: Workplace) -> None:
    lanes = Lanes(work, parallel=1)
    lanes.wake("a")
    await lanes.drain()
    assert (lanes._lanes, lanes._woken_again) == ({}, set())


async def test_closing_lets_work_end_within_the_grace_and_begins_no_more(work: Workplace) -> None:
    lanes = Lanes(work, parallel=1)
    gate = work.gate("a")
    lanes.wake("a")
    lanes.wake("b")
    await until(lambda: work.running)
    lanes.wake("a")
    closing = asyncio.create_task(lanes.close(PATIENCE_S))
    await asyncio.sleep(0)
    lanes.wake("c")
    gate.set()
    await closing
    assert work.notes == ["a begins", "a ends"]
    await lanes.drain()


async def test_closing_parks_what_does_not_end_in_time(work: Workplace) -> None:
    lanes = Lanes(work, parallel=2)
    for room in ("a", "b"):
        work.gate(room)
        lanes.wake(room)
    lanes.wake("waits for a slot")
    await until(lambda: work.running == 2)
    with capture_logs() as logs:
        await lanes.close(0)
    assert work.running == 0
    assert "waits for a slot" not in work.runs
    assert [line["event"] for line in logs] == ["turns_parked"]
    await lanes.close(0)


async def test_closing_ends_lanes_that_have_not_even_begun(work: Workplace) -> None:
    lanes = Lanes(work, parallel=1)
    lanes.wake("a")
    await lanes.close(0)
    async with asyncio.timeout(PATIENCE_S):
        await lanes.drain()
    assert work.notes == []


async def test_many_rooms_are_all_worked_in_spite_of_errors_and_wakes_at_random_moments() -> None:
    pending: defaultdict[str, int] = defaultdict(int)
    overlap: set[str] = set()

    async def work(room: str) -> bool:
        assert room not in overlap
        overlap.add(room)
        try:
            if pending[room]:
                await asyncio.sleep(0)
                pending[room] -= 1
                if pending[room] % 7 == 3:
                    raise RuntimeError("broken")
        finally:
            overlap.discard(room)
        return pending[room] > 0

    lanes = Lanes(work, parallel=4)
    with capture_logs():
        for n in range(300):
            room = f"room {n * n % 13}"
            pending[room] += 1
            lanes.wake(room)
            if n % 5 == 0:
                await asyncio.sleep(0)
        while any(pending.values()):
            for room in [room for room, left in pending.items() if left]:
                lanes.wake(room)
            await lanes.drain()
    assert not any(pending.values())
