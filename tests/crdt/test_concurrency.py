"""Many callers at once, and callers that are cancelled at every point where they wait."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from crdt import EventBatch, Store, Turn
from tests.crdt.cutting import cut_after_turns, cut_at_suspension
from tests.crdt.samples import ROOM, delivery, event, events, message, told

SUSPENSIONS = range(4)
TURNS = [0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 30, 50, 100, 300]


async def runs_without_holes(store: Store) -> list[int]:
    """The seqs of the whole log, which must be 1, 2, 3 …"""
    seqs = [one.event_seq for one in await store.read_events(limit=10**6)]
    assert seqs == list(range(1, len(seqs) + 1))
    return seqs


def seqs_of(lines_in_order: list[str], story_of: dict[str, int]) -> list[int]:
    """The seqs of lines, by the stories in them."""
    return [story_of[line.split('"')[1]] for line in lines_in_order]


async def test_fifty_tasks_append_while_twenty_assemble_one_session(path: Path) -> None:
    async with Store.open(path, segment_events=64) as store:
        appending = 50

        async def append(task: int) -> None:
            nonlocal appending
            for number in range(10):
                await store.append_events([event(story_id=f"{task}-{number}-{part}") for part in range(number % 3 + 1)])
            appending -= 1

        async def assemble() -> list[list[str]]:
            found = []
            while appending:
                found.append(await store.assemble_and_advance_session(ROOM))
                await store.read_cursor()  # leaves the interpreter to the store's threads
            return found

        appends = [asyncio.create_task(append(task)) for task in range(50)]
        chunks = [chunk for found in await asyncio.gather(*(assemble() for _ in range(20))) for chunk in found]
        await asyncio.gather(*appends)
        chunks.append(await store.assemble_and_advance_session(ROOM))
        seqs = await runs_without_holes(store)
        assert len(seqs) == 50 * sum(number % 3 + 1 for number in range(10))
        story_of = {one.story_id: one.event_seq for one in await store.read_events(limit=10**6)}
        assert len(story_of) == len(seqs)
        told_seqs = [seqs_of(chunk, story_of) for chunk in chunks if chunk]
        assert all(chunk == list(range(chunk[0], chunk[-1] + 1)) for chunk in told_seqs)
        assert sorted(seq for chunk in told_seqs for seq in chunk) == seqs


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_with_cancelled_callers_events_are_missing_only_as_whole_ranges_of_their_calls(
    path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    async with Store.open(path, segment_events=50) as store:
        stored: set[str] = set()
        perhaps: list[tuple[str, ...]] = []
        chunks: list[list[str]] = []
        lost = 0

        async def append(task: int) -> None:
            for number in range(6):
                stories = tuple(f"{task}-{number}-{part}" for part in range(chance.randint(1, 4)))
                batch = [event(story_id=story) for story in stories]
                turns = chance.choice(TURNS) if chance.random() < 0.5 else None
                if await cut_after_turns(lambda batch=batch: store.append_events(batch), turns) is None:  # type: ignore[misc]
                    perhaps.append(stories)
                else:
                    stored.update(stories)

        async def assemble() -> None:
            nonlocal lost
            for _ in range(12):
                turns = chance.choice(TURNS) if chance.random() < 0.5 else None
                chunk = await cut_after_turns(lambda: store.assemble_and_advance_session(ROOM), turns)
                if chunk is None:
                    lost += 1
                else:
                    chunks.append(chunk)

        await asyncio.gather(*(append(task) for task in range(50)), *(assemble() for _ in range(20)))
        chunks.append(await store.assemble_and_advance_session(ROOM))
        seqs = await runs_without_holes(store)
        story_of = {one.story_id: one.event_seq for one in await store.read_events(limit=10**6)}
        assert len(story_of) == len(seqs)
        assert stored <= story_of.keys()
        for stories in perhaps:  # a cancelled append is there as a whole, in one run, or not at all
            there = [story_of[story] for story in stories if story in story_of]
            assert there in ([], list(range(there[0], there[0] + len(stories)) if there else []))
        told_seqs = [seqs_of(chunk, story_of) for chunk in chunks if chunk]
        assert all(chunk == list(range(chunk[0], chunk[-1] + 1)) for chunk in told_seqs)
        flat = sorted(seq for chunk in told_seqs for seq in chunk)
        assert len(flat) == len(set(flat))
        missing = sorted(set(seqs) - set(flat))
        holes = sum(seq - 1 not in missing for seq in missing)
        assert holes <= lost


@pytest.mark.parametrize("at", SUSPENSIONS)
@pytest.mark.parametrize("make", ["append", "append_batches", "assemble", "begin", "complete", "admit", "roll"])
async def test_a_call_cancelled_where_it_waits_happens_as_a_whole_or_not_at_all(path: Path, make: str, at: int) -> None:
    steps: list[str] = []

    async def on_step(step: str) -> None:
        steps.append(step)
        await asyncio.sleep(0)

    async with Store.open(path, sled_id="build-1", on_step=on_step) as store:
        await store.append_events(events(1, 5))
        await store.admit([message("$1"), message("$2")], "s1")
        first = await store.begin_turn(ROOM, "$1", "hello")
        await store.complete_turn(first, "hi")
        await store.append_events(events(6, 8))
        second = Turn(ROOM, "$2", "hello")
        if make == "complete":
            second = await store.begin_turn(ROOM, "$2", "hello")
        calls = {
            "append": lambda: store.append_events(events(9, 11)),
            "append_batches": lambda: store.append_batches([EventBatch(tuple(events(9, 11)), ("k",))]),
            "assemble": lambda: store.assemble_and_advance_session("!other"),
            "begin": lambda: store.begin_turn(ROOM, "$2", "hello"),
            "complete": lambda: store.complete_turn(second, "hi", [delivery("d1")]),
            "admit": lambda: store.admit([message("$3")], "s2"),
            "roll": lambda: store.roll_session(ROOM, 0),
        }
        await cut_at_suspension(calls[make], at)
    async with Store.open(path) as store:
        seqs = await runs_without_holes(store)
        assert len(seqs) in {8, 11}
        entries = await store.read_transcript(ROOM)
        view = await store.read_llm_session(ROOM)
        assert view is not None
        if make != "roll" or entries:
            assert told(line for entry in entries for line in entry.lines) == list(
                range(1, view.high_water["build-1"] + 1)
            )
        assert len(await store.due_deliveries()) == (len(entries) == 4)
        assert await store.read_cursor() == ("s2" if len(await store.waiting(ROOM)) > 1 else "s1")
        turn = await store.begin_turn(ROOM, "$2", "hello")
        await store.complete_turn(turn, "hi", [delivery("d1")])
        assert len(await store.due_deliveries()) == 1
        assert "$2" not in [one.key for one in await store.waiting(ROOM)]


@pytest.mark.parametrize("seed", range(4))
async def test_turns_cancelled_at_any_moment_tell_every_event_exactly_once(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    rooms = ["!a", "!b", "!c"]
    async with Store.open(path, segment_events=20) as store:
        appended = 0

        async def append() -> None:
            nonlocal appended
            for _ in range(60):
                appended += 1
                await store.append_event(event(appended))

        async def cut_three_times_at_most(call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
            for _ in range(3):
                result = await cut_after_turns(call, chance.choice(TURNS))
                if result is not None:
                    return result
            return await call()

        async def talk(room: str) -> None:
            for number in range(12):
                begin = partial(store.begin_turn, room, f"${room}-{number}", "hello", max_lines=3)
                turn = await cut_three_times_at_most(begin)
                await cut_three_times_at_most(partial(answered, store, turn))

        await asyncio.gather(append(), *(talk(room) for room in rooms))
        for room in rooms:
            last = await store.begin_turn(room, "$last", "hello")
            entries = await store.read_transcript(room)
            assert told(line for entry in entries for line in entry.lines) == list(range(1, 61))
            assert [entry.role for entry in entries] == ["user", "assistant"] * 12 + ["user"]
            assert last.attempt == 1
    async with Store.open(path) as store:
        for room in rooms:
            assert len(await store.read_transcript(room)) == 25
        assert len(await store.due_deliveries()) == 3


async def answered(store: Store, turn: Turn) -> bool:
    """Complete a turn; tells when it has come to its end."""
    await store.complete_turn(turn, f"answer {turn.key}", [delivery(f"d{turn.key}", turn.session_id)])
    return True


async def test_many_rooms_talk_at_once_beyond_what_memory_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crdt.sessions.SESSIONS_IN_MEMORY", 4)
    async with Store.open(path) as store:
        rooms = [f"!{number}" for number in range(25)]

        async def talk(room: str, key: str) -> None:
            turn = await store.begin_turn(room, key, f"{room} {key}")
            await store.complete_turn(turn, f"{key} {room}")

        for round_ in range(4):
            await store.append_events([event(round_ * 2 + 1), event(round_ * 2 + 2)])
            await asyncio.gather(*(talk(room, f"${room}-{round_}") for room in rooms))
        for room in rooms:
            entries = await store.read_transcript(room)
            assert told(line for entry in entries for line in entry.lines) == list(range(1, 9))
            assert [entry.role for entry in entries] == ["user", "assistant"] * 4


async def test_turns_of_one_room_that_race_share_no_event(store: Store) -> None:
    await store.append_events(events(1, 30))
    turns = await asyncio.gather(*(store.begin_turn(ROOM, f"${n}", "hello", max_lines=100) for n in range(10)))
    assert sorted(seq for turn in turns for seq in told(turn.lines)) == list(range(1, 31))
    again = await asyncio.gather(*(store.begin_turn(ROOM, "$0", "hello") for _ in range(10)))
    assert sorted(turn.attempt for turn in again) == list(range(2, 12))
    await asyncio.gather(*(store.complete_turn(turns[0], f"answer {n}") for n in range(5)))
    replies = [entry for entry in await store.read_transcript(ROOM) if entry.role == "assistant"]
    assert len(replies) == 1
