"""A crash at every write, fsync and deletion of a life: what was acknowledged is there, what was not, whole or not at
all."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from crdt import Delivery, Edit, EventBatch, Store, StoreUnavailable, TranscriptEntry, Turn
from crdt.care.verify import verify_database
from tests.crdt.care.life import contents
from tests.crdt.cuts import SECTOR, Recording
from tests.crdt.disk import library
from tests.crdt.samples import OTHER_ROOM, ROOM, delivery, events, message

pytestmark = pytest.mark.skipif(library() is None, reason="SQLite is built into this Python and can't be watched")

OF_A_TURN = 60
"""So many calls of a turn are each tried; others are drawn."""
RETENTION_EVENTS = 30
DRAWN = int(os.environ.get("MUSHER_CRASHES", "40"))

Step = Callable[[Store], Awaitable[object]]
Contents = dict[str, object]
Crash = Callable[["Life", int, dict[Path, bytes], str], Awaitable[None]]


def append(first: int, last: int) -> Step:
    return lambda store: store.append_batches([EventBatch(tuple(events(first, last)), (f"{first}-{last}",))])


def begin(key: str, room: str = ROOM) -> Step:
    async def begin_with_all_that_waits(store: Store) -> None:
        waiting = await store.waiting(room)
        said = [each for each in waiting if not each.context]
        await store.begin_turn(
            room, key, f"text of {key}", [each for each in waiting if each.context], said, max_lines=4
        )

    return begin_with_all_that_waits


def complete(key: str, *deliveries: Delivery, room: str = ROOM) -> Step:
    return lambda store: store.complete_turn(Turn(room, key, f"text of {key}"), f"reply to {key}", deliveries)


def strike(entry: TranscriptEntry, gone: object) -> TranscriptEntry:
    return replace(entry, text="[redacted]")


TURN: list[Step] = [
    append(1, 3),
    lambda store: store.admit([message("$1")], "s1"),
    begin("$1"),
    complete("$1", delivery("d1")),
    lambda store: store.delivery_attempted("d1"),
    lambda store: store.delivery_sent("d1", "$sent1"),
]

REST: list[Step] = [
    append(4, 17),
    lambda store: store.housekeep(),
    lambda store: store.write_settings({"device": "ABC", "another": "x" * 9000}),
    lambda store: store.admit([message("$2"), message("$3", "a" * 5000), message("$c", context=True)], "s2"),
    lambda store: store.admit([], "s3", [Edit("$3", "@alice:example.org", "edited")]),
    begin("$2"),
    complete("$2", delivery("d2"), delivery("d3", content="z" * 20_000)),
    lambda store: store.admit([message("$4", session_id=OTHER_ROOM), message("$5", session_id=OTHER_ROOM)], "s4"),
    lambda store: store.settle(["$5"], "not allowed", [delivery("d5", OTHER_ROOM)]),
    begin("$4", OTHER_ROOM),
    lambda store: store.move_session(OTHER_ROOM, "!upgraded"),
    complete("$4", delivery("d4", "!upgraded"), room="!upgraded"),
    lambda store: store.delivery_dropped("d5", "room gone"),
    lambda store: store.admit([], "s5", redactions=["$2", "$3"]),
    lambda store: store.redact_session(ROOM, strike),
    append(18, 40),
    lambda store: store.assemble_and_advance_session("!upgraded"),
    begin("$6"),
    complete("$6"),
    begin("$7"),
    complete("$7"),
    begin("$8"),
    complete("$8"),
    lambda store: store.roll_session(ROOM, 2),
    lambda store: store.write_llm_session(ROOM, "other", "single-sled"),
    append(41, 90),
    lambda store: store.housekeep(),
]


@dataclass
class Life:
    """A recorded life: `steps[i]` is acknowledged after `ends[i]` calls, and finds `contents[i]`."""

    recording: Recording
    steps: list[Step]
    ends: list[int]
    contents: list[Contents]

    def step_at(self, calls: int) -> int:
        """The step that a crash after so many calls breaks off."""
        return sum(end <= calls for end in self.ends)


def open_store(path: Path) -> Store:
    return Store.open(path, sled_id="build-1", segment_events=5, retention_events=RETENTION_EVENTS)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the log compacted early, and let no time pass, so that a step repeated gives the same."""
    monkeypatch.setattr("crdt.event_log.COMPACT_LIVE_AFTER_OPS", 4)
    monkeypatch.setattr("crdt.store._now_ms", lambda: 1_800_000_000_000)


async def record(path: Path, *lives: list[Step]) -> Life:
    """Live, each part of it between an opening and a closing."""
    life = Life(Recording(path), [], [], [])
    with life.recording.running():
        for steps in lives:
            async with open_store(path) as store:
                for step in steps:
                    life.contents.append(await contents_of(path))
                    await step(store)
                    life.steps.append(step)
                    life.ends.append(len(life.recording.calls))
    life.contents.append(await contents_of(path))
    return life


def put(files: dict[Path, bytes], folder: Path) -> Path:
    """Write the files of a crash into a folder; returns the database's path."""
    folder.mkdir()
    for path, data in files.items():
        (folder / path.name).write_bytes(data)
    return folder / "musher.db"


async def contents_of(path: Path) -> Contents:
    """What a store must keep: of the log so much as its retention promises."""
    found = await contents(path)
    return found | {"log": found["log"][-RETENTION_EVENTS:]}  # type: ignore[index]


def but_attempts(found: Contents) -> Contents:
    """Contents without the numbers that count attempts: those rise when a step is done again."""
    outbox = [row[:4] + row[5:] for row in found["outbox"]]  # type: ignore[attr-defined]
    turns = [(*row[:2], row[3]) for row in found["turns"]]  # type: ignore[attr-defined]
    return found | {"outbox": outbox, "turns": turns}


async def examine(life: Life, calls: int, files: dict[Path, bytes], folder: Path) -> None:
    """Go on after a crash: all that was acknowledged is there, and the step that was broken off can be done again."""
    path = put(files, folder)
    step = life.step_at(calls)
    before, after = life.contents[step], life.contents[min(step + 1, len(life.steps))]
    async with open_store(path) as store:
        assert await contents_of(path) in (before, after)
        if step < len(life.steps):
            await life.steps[step](store)
            assert but_attempts(await contents_of(path)) == but_attempts(after)
    assert verify_database(path).problems == ()
    shutil.rmtree(folder)


@pytest.fixture
def crash(path: Path, tmp_path: Path) -> Crash:
    """Tries what is left after a crash of the life at `path`, and tells which it was if that fails."""

    async def try_to_go_on(life: Life, calls: int, files: dict[Path, bytes], what: str) -> None:
        try:
            await examine(life, calls, files, tmp_path / "crashed")
        except Exception as error:
            raise AssertionError(f"{what} at call {calls}, {life.recording.calls[calls]}: {error!r}") from error

    return try_to_go_on


async def test_a_kill_at_each_write_and_fsync_of_a_turn_loses_and_repeats_nothing(path: Path, crash: Crash) -> None:
    life = await record(path, TURN)
    first = life.ends[0]
    assert life.ends[-1] - first >= OF_A_TURN
    for calls in range(first, first + OF_A_TURN):
        call = life.recording.calls[calls]
        await crash(life, calls, life.recording.after_kill(calls), "killed")
        if call.kind == "write":
            torn = random.Random(calls).randrange(1, len(call.data))
            await crash(life, calls, life.recording.after_kill(calls, torn), f"killed after {torn} bytes")


async def test_a_first_start_that_is_killed_before_there_is_a_wal_can_be_repeated(path: Path, crash: Crash) -> None:
    life = await record(path, TURN[:1])
    before_wal = [number for number, call in enumerate(life.recording.calls) if call.path.suffix == ".db-journal"]
    assert before_wal
    for calls in range(before_wal[-1] + 2):
        await crash(life, calls, life.recording.after_kill(calls), "killed")
        if life.recording.calls[calls].kind == "write":
            await crash(life, calls, life.recording.after_kill(calls, SECTOR), "killed after one sector")


async def test_who_only_reads_leaves_it_to_the_service_to_undo_a_change_that_was_broken_off(
    path: Path, tmp_path: Path
) -> None:
    life = await record(path, TURN[:1])
    change = next(number for number, call in enumerate(life.recording.calls) if call.path.suffix == ".db")
    left = put(life.recording.after_kill(change + 1), tmp_path / "killed")
    with pytest.raises(StoreUnavailable, match="start 'musher run' once"):
        verify_database(left)


async def test_a_crash_at_any_moment_of_a_life_loses_and_repeats_nothing(path: Path, crash: Crash) -> None:
    """Opening, rolls, compaction, retention, checkpoints, closing: what the store does by itself is in it too."""
    life = await record(path, TURN, REST[:10], REST[10:])
    recording = life.recording
    for seed in range(DRAWN):
        chance = random.Random(seed)
        calls = chance.randrange(len(recording.calls))
        await crash(life, calls, recording.after_kill(calls), "killed")
        await crash(life, calls, recording.after_power_cut(calls, chance), f"power cut with seed {seed}")
