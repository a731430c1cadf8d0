"""What decay does is done, and what a service or its readers make of it is judged."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from crdt import Store
from crdt.owner import lock_path
from tests.crdt.samples import ROOM, delivery, events, message
from tests.soak.decay import Decay, Ended, damage, file_of, judge_end, judge_reading, names_damage, read, verified
from tests.soak.oracle import Findings
from tests.system.service import MusherProcess

DAMAGED = "musher: the database x.db is damaged: op 3 was altered; restore a backup"


@pytest.fixture
async def killed(tmp_path: Path) -> Path:
    """A database as a killed process leaves it."""
    folder = tmp_path / "killed"
    folder.mkdir()
    async with Store.open(tmp_path / "alive" / "musher.db") as store:
        await store.append_events(events(1, 50))
        await store.admit([message("$1")], cursor="s1")
        turn = await store.begin_turn(ROOM, "$1", "hello")
        await store.complete_turn(turn, "hi", [delivery("d1")])
        for file in store._database.path.parent.iterdir():
            shutil.copy(file, folder)
    return folder / "musher.db"


async def test_damage_is_found_or_does_no_harm(killed: Path, tmp_path: Path) -> None:
    before, _ = await read(killed)
    outcomes: Counter[bool] = Counter()
    for seed in range(60):
        chance = random.Random(seed)
        path = tmp_path / str(seed) / "musher.db"
        shutil.copytree(killed.parent, path.parent)
        kind = chance.choice(["database", "WAL", "lock file", "index of the WAL"])
        as_it_was = file_of(path, kind).read_bytes()
        done = damage(file_of(path, kind), chance)
        changed = file_of(path, kind).read_bytes() != as_it_was
        problems = verified(path)
        assert changed or not problems
        findings = Findings()
        judge_reading(done, problems, before, await read(path, before), findings)
        assert not findings, findings.wrong
        outcomes[bool(problems)] += 1
    assert min(outcomes[True], outcomes[False]) > 5


async def test_while_the_witness_is_damaged_nothing_else_decays(killed: Path, tmp_path: Path) -> None:
    home = tmp_path / "service" / "data"
    shutil.copytree(killed.parent, home)
    musher = MusherProcess(home.parent, "http://127.0.0.1:9", "@musher:localhost", "http://127.0.0.1:9")
    faults = Counter[str]()
    decay = Decay(musher, ["index of the WAL"], faults, Findings())
    await decay.befall(random.Random(1))
    assert faults.total() == 1
    lock_path(musher.database).write_bytes(b"")
    await decay.befall(random.Random(1))
    assert faults.total() == 1


def test_each_kind_is_a_file_of_its_own_or_else_the_database(killed: Path) -> None:
    assert file_of(killed, "database") == killed
    assert file_of(killed, "WAL").name == "musher.db-wal"
    assert file_of(killed, "lock file") == lock_path(killed)
    assert file_of(killed, "key file") == file_of(killed, "pickle key") == killed
    for name in ("musher.db.keys-ABC", "musher.db.keys-ABC-journal", "musher.db.pickle-key"):
        killed.with_name(name).write_text(name)
    assert file_of(killed, "key file").name == "musher.db.keys-ABC"
    assert file_of(killed, "pickle key").name == "musher.db.pickle-key"


def test_what_is_silently_different_is_found() -> None:
    findings = Findings()
    judge_reading("a bit", ["a problem"], {"log": [1, 2], "sessions": []}, ({"log": [1]}, ["sessions"]), findings)
    assert findings.wrong == ["a bit: log is silently different"]


def test_damage_that_verify_overlooks_is_found() -> None:
    findings = Findings()
    judge_reading("a bit", [], {"log": [1]}, ({}, ["log"]), findings)
    assert findings.wrong == ["a bit: verify finds nothing, and ['log'] can't be read"]


@pytest.mark.parametrize(
    ("code", "said", "right"),
    [
        (1, [DAMAGED], True),
        (1, ["musher: the homeserver http://127.0.0.1:9 can't be used: no connection"], True),
        (0, [DAMAGED], False),
        (1, [], False),
        (1, [DAMAGED, DAMAGED], False),
        (1, ["Traceback (most recent call last):", DAMAGED], False),
        (-11, [], False),
    ],
)
def test_a_start_that_does_not_end_in_one_line_is_found(code: int, said: list[str], right: bool) -> None:
    findings = Findings()
    judge_end("a bit", Ended(code, said), findings)
    assert bool(findings) is not right


def test_a_refusal_names_damage() -> None:
    assert names_damage(DAMAGED)
    assert names_damage("musher: the key file x is damaged: file is not a database; start Musher again")
    assert not names_damage("musher: the database x.db can't grow, the disk is full: make room")
    assert not names_damage('{"reason": "the database x.db is damaged: op 3"}')
