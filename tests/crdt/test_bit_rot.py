"""Bits that flip and files that end early: what was written comes back whole, or is refused by name."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from crdt import CrdtError, Store, StoreReader
from crdt.owner import lock_path
from tests.crdt.rot import Contents, Parts, contents, flip, parts_of, used
from tests.crdt.samples import OTHER_ROOM, ROOM, delivery, event, events, look, message

log = structlog.get_logger(__name__)

SEEDS = int(os.environ.get("MUSHER_BIT_ROT_SEEDS", "60"))
SEGMENT_EVENTS = 40
ROOMS = (ROOM, OTHER_ROOM)
KINDS = ("flip in the database", "flip in the WAL", "flip in a snapshot", "cut database", "cut WAL", "cut snapshot")


@dataclass(frozen=True)
class Patient:
    """A database as a killed process leaves it, part of its history in the WAL; as an ended one does; what it holds."""

    killed: Path
    closed: Path
    by_store: Contents
    by_reader: Contents

    def copy_to(self, folder: Path, kind: str, seed: int) -> Path:
        """A copy to be damaged: every other database has no WAL that could stand in for its pages."""
        shutil.copytree(self.closed if "database" in kind and seed % 4 else self.killed, folder)
        return folder / "musher.db"


async def talk(store: Store, room: str, first: int, last: int) -> None:
    for number in range(first, last + 1):
        key = f"${room}-{number}"
        await store.append_events(events(3 * number + 1, 3 * number + 3))
        await store.admit([message(key, f"what of {number}?", room)], cursor=f"s{number}")
        turn = await store.begin_turn(room, key, f"what of {number}?")
        await store.complete_turn(turn, f"this of {number}", [delivery(f"d{key}", room)])


async def live(store: Store) -> None:
    """A life with something in every table, and what is open: a turn, messages, deliveries."""
    await store.append_events(events(1, 100))
    await store.write_settings({"device": "ABC"})
    await talk(store, ROOM, 1, 12)
    await talk(store, OTHER_ROOM, 13, 20)
    for number in range(1, 11):
        await store.delivery_attempted(f"d${ROOM}-{number}")
        await store.delivery_sent(f"d${ROOM}-{number}", f"$sent{number}")
    await store.housekeep()
    await store.roll_session(OTHER_ROOM, 6)
    assert store._database._writer is not None
    await store._database._writer.run(lambda each: each.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
    await talk(store, ROOM, 21, 24)
    await store.admit([message("$open", "and now?"), message("$waiting"), message("$context", context=True)], "s99")
    await store.begin_turn(ROOM, "$open", "and now?")
    await store.delivery_attempted(f"d${ROOM}-11")


async def read_store(store: Store) -> Parts:
    async def settings() -> object:
        return [store.sled_id, await store.read_cursor(), await store.read_setting("device")]

    parts: Parts = {
        "log": lambda: store.read_events(limit=10_000),
        "settings": settings,
        "deliveries": store.due_deliveries,
        "waiting": store.waiting_sessions,
    }
    for room in ROOMS:
        parts[f"marks of {room}"] = lambda room=room: store.read_llm_session(room)  # type: ignore[misc]
        parts[f"transcript of {room}"] = lambda room=room: store.read_transcript(room)  # type: ignore[misc]
        parts[f"inbox of {room}"] = lambda room=room: store.waiting(room)  # type: ignore[misc]
    return parts


@pytest.fixture
async def patient(tmp_path: Path) -> Patient:
    folder = tmp_path / "patient"
    path = folder / "alive" / "musher.db"
    async with Store.open(path, sled_id="build-1", segment_events=SEGMENT_EVENTS) as store:
        await live(store)
        by_store, refused = await contents(await read_store(store))
        killed = folder / "killed"
        killed.mkdir()
        for file in (path, path.with_name("musher.db-wal"), lock_path(path)):
            shutil.copy(file, killed)
        async with StoreReader.open(path) as reader:
            by_reader, also_refused = await contents(parts_of(reader, ROOMS))
    assert not refused + also_refused
    return Patient(killed, path.parent, by_store, by_reader)


def snapshot_places(path: Path) -> list[int]:
    """Where in the file the snapshots' bytes stand: each page's part of them is looked for."""
    data = path.read_bytes()
    places: list[int] = []
    for (snapshot,) in look(path, "SELECT packed_data FROM snapshots"):
        for start in range(0, len(snapshot) - 32, 32):
            found = data.find(snapshot[start : start + 32])
            if found >= 0:
                places.extend(range(found, found + 32))
    return places


def damage(path: Path, kind: str, seed: int) -> str:
    """Do one of the things that disks do; returns what it was."""
    rng = random.Random(seed)
    file = path.with_name("musher.db-wal") if "WAL" in kind else path
    if kind == "cut snapshot":
        first = "(SELECT doc_id FROM snapshots LIMIT 1)"
        shorter = f"UPDATE snapshots SET packed_data = substr(packed_data, 1, ?) WHERE doc_id = {first}"
        length = rng.randrange(len(look(path, "SELECT packed_data FROM snapshots LIMIT 1")[0][0]))
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute(shorter, (length,))
        connection.close()
        return f"a snapshot cut to {length} bytes"
    size = file.stat().st_size
    if kind.startswith("cut"):
        length = rng.choice([0, rng.randrange(size), rng.randrange(size) // 4096 * 4096])
        os.truncate(file, length)
        return f"{file.name} cut from {size} to {length} bytes"
    at = rng.choice(snapshot_places(path) if kind == "flip in a snapshot" else used(file))
    bit = rng.randrange(8)
    flip(file, at, bit)
    return f"bit {bit} of byte {at} of {file.name}"


async def examine(path: Path, patient: Patient) -> str:
    """Open and read all; whatever is not refused must be what was written."""
    try:
        async with StoreReader.open(path) as reader:
            found, refused = await contents(parts_of(reader, ROOMS))
    except CrdtError:
        found, refused = {}, []
    for name, part in found.items():
        assert part == patient.by_reader[name], f"{name} is silently different for those who only look"
    try:
        async with Store.open(path, segment_events=SEGMENT_EVENTS) as store:
            found, refused = await contents(await read_store(store))
            for name, part in found.items():
                assert part == patient.by_store[name], f"{name} is silently different"
            if refused:
                return "refused when read"
            head = len(await store.read_events(limit=10_000))
            assert await store.append_event(event(head + 1)) == head + 1
    except CrdtError as error:
        assert str(path) in str(error)
        assert type(error).__name__ in ("StoreDamaged", "StoreNewer"), f"{type(error).__name__}: {error}"
        return "refused when opened"
    async with Store.open(path, segment_events=SEGMENT_EVENTS) as store:
        again, refused = await contents(await read_store(store))
        assert not refused
        assert again.pop("log") == [*found.pop("log"), *await store.read_events(after=head)]  # type: ignore[misc]
        assert again == found
    return "whole"


def cases() -> Iterator[tuple[int, str]]:
    for seed in range(SEEDS):
        yield seed, KINDS[seed % len(KINDS)]


async def test_rot_is_refused_by_name_or_does_no_harm(patient: Patient, tmp_path: Path) -> None:
    tally: Counter[tuple[str, str]] = Counter()
    for seed, kind in cases():
        folder = tmp_path / str(seed)
        path = patient.copy_to(folder, kind, seed)
        done = damage(path, kind, seed)
        try:
            tally[kind, await examine(path, patient)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, {done}: {error!r}") from error
        shutil.rmtree(folder)
    log.info("rot_examined", **{f"{kind}: {outcome}": count for (kind, outcome), count in sorted(tally.items())})
    for kind in KINDS:
        assert any(outcome != "whole" for (each, outcome) in tally if each == kind), f"no {kind} did anything"
