"""What a crash leaves on the disk, at every write, truncation, fsync and deletion of a store's life.

The life is recorded once; then the files are made as they were after any number of calls. A process that is killed
leaves what the kernel was given, the last write perhaps in part. A power cut leaves what was synced for certain, and
of what came later any part.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from crdt.owner import lock_path
from tests.crdt.disk import Call, watched

SECTOR: Final = 512
"""Bytes that a disk writes as a whole."""


@dataclass
class Recording:
    """The calls of a life, and what the lock file, which SQLite has no part in, held before each of them."""

    database: Path
    calls: list[Call] = field(default_factory=list)
    locks: list[bytes] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record while the block runs."""
        with watched(self._see):
            yield

    def _see(self, call: Call, _put: object) -> None:
        lock = lock_path(self.database)
        self.locks.append(lock.read_bytes() if lock.exists() else b"")
        self.calls.append(call)

    def after_kill(self, calls: int, torn: int | None = None) -> dict[Path, bytes]:
        """The files after a kill that let so many calls be made, and of the next, a write, only the first `torn`
        bytes."""
        files = _Files()
        for call in self.calls[:calls]:
            files.make(call)
        if torn is not None:
            files.write(self.calls[calls], torn)
        return files.with_lock(self.database, self.locks[calls])

    def after_power_cut(self, calls: int, chance: random.Random) -> dict[Path, bytes]:
        """The files after a power cut at the call of this number; `chance` leaves a part of what no fsync confirmed.

        The first fsync of a journal or WAL that is new is one of its folder too: it confirms what was deleted.
        """
        files = _Files()
        unsure: dict[Path, list[Call]] = {}
        for call in self.calls[:calls]:
            if call.kind != "sync":
                unsure.setdefault(call.path, []).append(call)
                continue
            waiting = unsure.pop(call.path, [])
            if not files.has(call.path) or any(each.kind == "delete" for each in waiting):
                for others in unsure.values():
                    files.make_up_to_last_deletion(others)
            for each in waiting:
                files.make(each)
        for waiting in unsure.values():
            files.make_some(waiting, chance)
        return files.with_lock(self.database, chance.choice([self.locks[calls], self.locks[calls // 2], b""]))


class _Files:
    def __init__(self) -> None:
        self._files: dict[Path, bytearray] = {}

    def make(self, call: Call) -> None:
        if call.kind == "write":
            self.write(call, len(call.data))
        elif call.kind == "truncate":
            file = self._files.setdefault(call.path, bytearray())
            del file[call.offset :]
            file.extend(bytes(call.offset - len(file)))
        elif call.kind == "delete":
            self._files.pop(call.path, None)

    def has(self, path: Path) -> bool:
        return path in self._files

    def make_up_to_last_deletion(self, calls: list[Call]) -> None:
        """Make those of one file that are sure once its deletion is, and leave the others."""
        while any(call.kind == "delete" for call in calls):
            self.make(calls.pop(0))

    def make_some(self, calls: list[Call], chance: random.Random) -> None:
        """Make some of one file's calls, and some writes in part; without its deletion no new file takes its name."""
        for call in calls:
            if chance.random() < 0.5:
                self.make(call)
            elif call.kind == "delete":
                return
            elif call.kind == "write":
                self.write(call, chance.randrange(0, len(call.data) + 1, SECTOR))

    def write(self, call: Call, size: int) -> None:
        file = self._files.setdefault(call.path, bytearray())
        file.extend(bytes(max(0, call.offset - len(file))))
        file[call.offset : call.offset + size] = call.data[:size]

    def with_lock(self, database: Path, lock: bytes) -> dict[Path, bytes]:
        files = {path: bytes(data) for path, data in self._files.items()}
        return files | ({lock_path(database): lock} if lock else {})
