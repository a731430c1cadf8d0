"""One process owns the database, and a witness outside it remembers how far its commits went.

The lock file `<database>.lock` is held by flock for as long as the store is open; the kernel lets go of it whatever
way the process ends. Its second line is the witness: the number of the newest commit, the database's id, and their
checksum, written after each commit without fsync; its third line repeats that, should one of the two be altered. A
database that is behind its witness has lost acknowledged commits (a truncated WAL, an old copy put in place), which
SQLite itself can't notice.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

import structlog

from crdt.errors import StoreBusy, StoreUnavailable
from crdt.schema import checksum

log = structlog.get_logger(__name__)

_OWNER_WIDTH = 24
_WITNESS_OFFSET = _OWNER_WIDTH
_held_here: set[tuple[int, int]] = set()
"""The lock files that this process holds, by device and number."""


@dataclass(frozen=True, slots=True)
class Witness:
    """The newest commit that was acknowledged, and of which database."""

    commits: int
    database_id: str


def file_itself(database: Path) -> Path:
    """The file that links lead to: its WAL and its lock stand beside it."""
    # `resolve` fails where links lead round in a circle. What is no link keeps the name that people gave it.
    return Path(os.path.realpath(database)) if database.is_symlink() else database


def lock_path(database: Path) -> Path:
    """Where the lock file of a database stands."""
    database = file_itself(database)
    return database.with_name(database.name + ".lock")


class OwnerLock:
    """The lock file, held from `acquire` to `release`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._file = _device_and_number(os.fstat(descriptor))
        _held_here.add(self._file)

    @classmethod
    def acquire(cls, database: Path) -> OwnerLock:
        """Take the lock of `database`.

        Raises:
            StoreBusy: another process (or another store of this one) holds it.
            StoreUnavailable: the lock file can't be made.
            OSError: it can't be written.
        """
        path = lock_path(database)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            problem = f"can't be locked ({path}: {error.strerror})"
            raise StoreUnavailable(str(database), problem, "make its folder writable, or set store.path") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(descriptor, _OWNER_WIDTH, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise StoreBusy(str(database), owner or "pid unknown") from error
        try:
            os.pwrite(descriptor, f"pid {os.getpid()}".ljust(_OWNER_WIDTH - 1).encode() + b"\n", 0)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def read_witness(self) -> Witness | None:
        """Read the witness; `None` for a database that has none yet."""
        return _parse(os.pread(self._descriptor, 200, _WITNESS_OFFSET))

    def write_witness(self, witness: Witness) -> None:
        """Note the newest commit. Not synced: it has to outlive the process, not the power."""
        commits = f"{witness.commits:020d}"
        line = f"{commits} {witness.database_id} {checksum(commits, witness.database_id):010d}\n"
        os.pwrite(self._descriptor, (line * 2).encode(), _WITNESS_OFFSET)

    def release(self) -> None:
        """Let go of the lock; the file stays, for its witness."""
        _held_here.discard(self._file)
        os.close(self._descriptor)


def is_owned_here(database: Path) -> bool:
    """Tell whether this process owns the database."""
    try:
        return _device_and_number(lock_path(database).stat()) in _held_here
    except OSError:  # without a lock file nobody owns it
        return False


def _device_and_number(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def read_witness(database: Path) -> Witness | None:
    """Read the witness beside its owner; `None` where there is none.

    Read it before the database: what that shows afterwards is at least as new.
    """
    try:
        found = lock_path(database).read_bytes()
    except OSError:  # without a lock file, or leave to read it, nothing is known; the owner will say more
        return None
    return _parse(found[_WITNESS_OFFSET : _WITNESS_OFFSET + 200])


def _parse(found: bytes) -> Witness | None:
    """Read a witness; one that was altered says nothing, or another history would seem to be in place."""
    lines = found.decode("ascii", "replace").splitlines()[:2]
    for line in lines:
        commits, database_id, stored_checksum = ([*line.split(), "", "", ""])[:3]
        if stored_checksum == f"{checksum(commits, database_id):010d}":
            return Witness(int(commits), database_id)
    if any(lines):
        log.warning("witness_unreadable", effect="commits that were lost before this opening are not noticed")
    return None
