"""A machine ails as it is told, from the moment that it is told, and is well afterwards."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crdt.disk import library, watched
from tests.soak.ailing import ailing
from tests.soak.machine import FARTHEST_S, HOUR_S, Machine
from tests.system.service import environment

needs_library = pytest.mark.skipif(library() is None, reason="SQLite is built into this Python and can't be watched")
CLOCK = """
import sys
from pathlib import Path
from tests.soak.ailing import shift_clock
shift_clock(Path(sys.argv[1]) / "clock")
import time
from datetime import UTC, datetime
told = [time.time(), time.time_ns() / 1e9, datetime.now(UTC).timestamp(), datetime.now().timestamp()]
assert isinstance(datetime.now(UTC), datetime) and isinstance(datetime(2000, 1, 1), datetime)
print(*told, time.monotonic())
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


@pytest.fixture
def database(machine: Machine, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with watched(ailing(tmp_path / "machine")):
        connection = sqlite3.connect(tmp_path / "some.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("CREATE TABLE facts (fact TEXT)")
        yield connection
        connection.close()


def add(database: sqlite3.Connection) -> None:
    database.execute("INSERT INTO facts VALUES (hex(randomblob(8000)))")


def count(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT count(*) FROM facts").fetchone()[0])


@needs_library
def test_a_full_disk_takes_nothing_until_there_is_room(machine: Machine, database: sqlite3.Connection) -> None:
    machine.break_disk("full")
    for _ in range(2):
        with pytest.raises(sqlite3.OperationalError, match="disk is full"):
            add(database)
    assert machine.refused == 2
    machine.mend_disk()
    add(database)
    assert count(database) == 1


@needs_library
def test_a_disk_that_fails_once_fails_once(machine: Machine, database: sqlite3.Connection) -> None:
    machine.break_disk("one error")
    with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
        add(database)
    add(database)
    assert count(database) == machine.refused == 1


@needs_library
def test_a_failing_disk_fails_now_and_then(machine: Machine, database: sqlite3.Connection) -> None:
    machine.break_disk("failing")
    failures = 0
    for _ in range(100):
        try:
            add(database)
        except sqlite3.OperationalError:
            failures += 1
    assert 0 < failures < 100
    assert machine.refused >= failures


def told(tmp_path: Path) -> tuple[list[float], float]:
    """All wall clocks of another process, and how far its monotonic one is from ours."""
    command = [sys.executable, "-c", CLOCK, str(tmp_path / "machine")]
    said = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True).stdout
    *clocks, monotonic = map(float, said.split())
    return clocks, monotonic - time.monotonic()


def test_the_wall_clock_steps_and_no_other(machine: Machine, tmp_path: Path) -> None:
    chance, steps = random.Random(1), set()
    for _ in range(40):
        steps.add(machine.step_clock(chance))
    far = ("minutes", "hours", "more than 12 h")
    assert {f"{way} by {each}" for way in ("back", "forward") for each in far} <= steps
    clocks, apart_s = told(tmp_path)
    shift_s = float((tmp_path / "machine" / "clock").read_text())
    assert 0 < abs(shift_s) < FARTHEST_S < 24 * HOUR_S
    assert clocks == pytest.approx([time.time() + shift_s] * 4, abs=30)
    assert abs(apart_s) < 30


def test_the_same_chance_steps_the_clock_alike(machine: Machine, tmp_path: Path) -> None:
    other = Machine(tmp_path / "other")
    one, two = random.Random(2), random.Random(2)
    assert [machine.step_clock(one) for _ in range(20)] == [other.step_clock(two) for _ in range(20)]
