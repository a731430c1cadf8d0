"""Files that decay while the service is down after a kill, and what its operator does then.

One file is damaged, and a copy of all files, made right before, stands for a backup of that very moment. The operator
has `musher db verify` look at the database before the service goes on:

- It finds nothing: then all that can be read has to be what was there before, and the service goes on with the damaged
  files, for good. What becomes of that, the judgement at the end of the soak sees.
- It finds damage: then the copy is put back. First the service is started upon the damage, and whoever only looks reads
  it; both refuse what is damaged by name, and nothing that they do not refuse is different. That start is one that
  can acknowledge nothing, since its homeserver is nowhere: it opens the database, and ends. A service that went on
  until it met the damage (each document is checked when it is read) would acknowledge what then goes with the files.

`verify` knows nothing of encryption keys. A start that finds them damaged makes a new device, or is refused by name
before it has acknowledged anything, so that the copy can be put back.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crdt import CrdtError, StoreReader, verify_database
from crdt.owner import lock_path, read_witness
from tests.crdt.rot import Contents, contents, flip, parts_of, used
from tests.soak.oracle import Findings
from tests.system.service import PATIENCE, MusherProcess

FILES: Final = ("database", "database", "WAL", "WAL", "lock file", "index of the WAL")
KEY_FILES: Final = ("key file", "pickle key")
SECTOR: Final = 512
"""Bytes that a disk loses as a whole."""
PAGE: Final = 4096

_NOWHERE: Final = "http://127.0.0.1:9"
_REFUSAL: Final = re.compile(r"^musher: .*( is damaged: |can't be opened with this pickle key)")
"""How the store and the key file refuse by name."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a start ended: its exit code, and what it said besides its log."""

    code: int
    said: Sequence[str]

    @property
    def refused(self) -> bool:
        """Whether it named damage."""
        return any(map(names_damage, self.said))


def names_damage(line: str) -> bool:
    """Whether a line is a start's refusal of what it found."""
    return _REFUSAL.search(line) is not None


class Decay:
    """Damages the files of one service while its process is down."""

    def __init__(self, musher: MusherProcess, kinds: Sequence[str], faults: Counter[str], findings: Findings) -> None:
        self._musher = musher
        self._kinds = kinds
        self._faults = faults
        self._findings = findings
        self._copy = musher.folder / "copy"
        self._keys_damaged = False
        """No start has got over it yet."""

    async def befall(self, chance: random.Random) -> None:
        """Damage one file; then the service may be started, upon the damage or upon the copy.

        Keys that no start has looked at since they were damaged are damage enough. So is the witness in the lock file,
        which alone knows of commits that a cut WAL has lost, until a start has written it anew.
        """
        path = self._musher.database
        if self._keys_damaged or read_witness(path) is None:
            return
        before, unreadable = await read(path)
        assert not unreadable, f"nothing was done yet, and {unreadable} can't be read"
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(path.parent, self._copy)
        kind, details = chance.choice(self._kinds), random.Random(chance.random())
        done = f"{damage(file_of(path, kind), details)} of the {kind}"
        if kind in KEY_FILES:
            self._keys_damaged = True
            self._faults[f"rot in the {kind}"] += 1
            return
        problems = verified(path)
        judge_reading(done, problems, before, await read(path, before), self._findings)
        outcome = "did no harm"
        if problems:
            ended = await self._start_upon_damage()
            judge_end(done, ended, self._findings)
            outcome = "refused by the start" if ended.refused else "refused by its readers"
            self._put_back()
        self._faults[f"rot in the {kind}, {outcome}"] += 1

    def explains(self, last_line: str, *, started: bool) -> bool:
        """Whether damage of the keys is why the newest start has ended; what can't be used is put back then."""
        explained = self._keys_damaged and names_damage(last_line)
        if explained and not started:
            self._put_back()
            self._faults["rot in keys, refused by the start"] += 1
        self._keys_damaged &= not (explained or started)
        return explained

    async def _start_upon_damage(self) -> Ended:
        musher, logged = self._musher, len(self._musher.logs)
        nowhere = {"matrix": {"homeserver": _NOWHERE}, "llm": {"base_url": _NOWHERE}}
        changed = {name: {**musher.sections.get(name, {}), **keys} for name, keys in nowhere.items()}
        musher.configure({**musher.sections, **changed})
        await musher.start(ready=False)
        async with asyncio.timeout(PATIENCE):
            code = await musher.wait_until_ended()
        await musher.kill()
        musher.configure(musher.sections)
        return Ended(code, [line["line"] for line in musher.logs[logged:] if "line" in line])

    def _put_back(self) -> None:
        folder = self._musher.database.parent
        shutil.rmtree(folder)
        shutil.copytree(self._copy, folder)


def file_of(database: Path, kind: str) -> Path:
    """The file of a kind, or the database where there is none or nothing in it."""
    files = {
        "WAL": database.with_name(f"{database.name}-wal"),
        "index of the WAL": database.with_name(f"{database.name}-shm"),
        "lock file": lock_path(database),
        "pickle key": database.with_name(f"{database.name}.pickle-key"),
        "key file": next(
            (each for each in database.parent.glob(f"{database.name}.keys-*") if not each.name.endswith("-journal")),
            database,
        ),
    }
    file = files.get(kind, database)
    return file if file.exists() and file.stat().st_size else database


def damage(file: Path, chance: random.Random) -> str:
    """Do one of the things that disks do; returns what it was."""
    size, how = file.stat().st_size, chance.choice(["flip", "flip", "cut", "zeros"])
    if how == "cut":
        length = chance.choice([0, chance.randrange(size), chance.randrange(size) // PAGE * PAGE])
        os.truncate(file, length)
        return f"the end from {length} on, of {size} bytes,"
    if how == "zeros":
        start = chance.randrange(size) // SECTOR * SECTOR
        data = file.read_bytes()
        rest = data[start + SECTOR :]
        file.write_bytes(data[:start] + bytes(len(data) - start - len(rest)) + rest)
        return f"the sector at {start}"
    at, bit = chance.choice(used(file) or [0]), chance.randrange(8)
    flip(file, at, bit)
    return f"bit {bit} of byte {at}"


def verified(path: Path) -> Sequence[str]:
    """What `musher db verify` finds wrong."""
    try:
        return verify_database(path).problems
    except CrdtError as error:
        return [str(error)]


async def read(path: Path, like: Contents | None = None) -> tuple[Contents, list[str]]:
    """What those who only look are told of a database, and what they are refused. `like`: what it held before."""
    try:
        async with StoreReader.open(path) as reader:
            sessions: Any = like["sessions"] if like is not None else await reader.list_sessions()
            return await contents(parts_of(reader, [each.session_id for each in sessions]))
    except CrdtError:
        return {}, [*(like or ["all"])]


def judge_reading(
    done: str, problems: Sequence[str], before: Contents, after: tuple[Contents, Sequence[str]], findings: Findings
) -> None:
    """What is read of a damaged database is what was there, or is refused; and all of that `verify` finds, too."""
    found, refused = after
    findings.wrong += [f"{done}: {name} is silently different" for name in found if found[name] != before[name]]
    if refused and not problems:
        findings.wrong.append(f"{done}: verify finds nothing, and {refused} can't be read")


def judge_end(done: str, ended: Ended, findings: Findings) -> None:
    """A start that can't go on says so in one line."""
    told = [line for line in ended.said if line.startswith("musher: ")]
    if ended.code != 1 or len(told) != 1 or len(ended.said) != 1:
        findings.wrong.append(f"{done}: the start ended with {ended.code}, and said {list(ended.said)}")
