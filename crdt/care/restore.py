"""Puts a backup in the database's place: verified first, the old file kept aside, and ready to go on from there."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from crdt import opening
from crdt.care.backup import remove
from crdt.care.files import bring_up_to_date, connect, copy, left_beside, put_in_place, reading, translating
from crdt.care.progress import Progress, unwatched
from crdt.care.renewal import begin_anew
from crdt.care.verify import Verification, examine
from crdt.database import in_snapshot
from crdt.errors import StoreDamaged, StoreUnavailable
from crdt.owner import OwnerLock, Witness, file_itself, lock_path
from crdt.state import State

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Restored:
    """What is there now, and where the database that was replaced is kept; `None` where there was none."""

    verification: Verification
    aside: Path | None


def restore_database(path: str | Path, backup: str | Path, *, progress: Progress = unwatched) -> Restored:
    """Replace the database at `path` by what the file `backup` holds.

    Nothing is replaced before the copy is whole, verified, and on the disk.

    Raises:
        StoreBusy: a process owns the database.
        StoreDamaged: the backup is; nothing was replaced.
        StoreNewer, StoreUnavailable: the backup can't be read, or the database can't be written.
    """
    source = Path(backup)
    with translating(Path(path)):
        place = file_itself(Path(path))
        if os.path.realpath(place) == os.path.realpath(source):
            raise StoreUnavailable(str(source), "is the database itself", "name a file that 'musher db backup' wrote")
        if place.exists() and not place.is_file():
            raise StoreUnavailable(str(place), "is no file", "point store.path at the database file")
        if os.path.realpath(_unfinished(place)) == os.path.realpath(source):
            raise StoreUnavailable(str(source), "has the name of what a restore has not finished", "rename it first")
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = OwnerLock.acquire(place)
    try:
        return _restore(place, source, lock, progress)
    finally:
        lock.release()


def _unfinished(place: Path) -> Path:
    return place.with_name(f"{place.name}.restoring")


def _restore(place: Path, source: Path, lock: OwnerLock, progress: Progress) -> Restored:
    made = _unfinished(place)
    try:
        with reading(source, older=True) as connection, translating(place):
            copy(connection, made, progress, "copying")
        with translating(place), closing(connect(made, "rw")) as connection:
            verification, state = _renew(connection, made, source, progress)
        with translating(place):
            _give_to_owner_of(place if place.exists() else place.parent, made, lock_path(place))
            aside = _set_aside(place)
            put_in_place(made, place)
            lock.write_witness(Witness(state.commits, state.database_id))
    finally:
        remove(made)
    log.info("database_restored", path=str(place), commits=state.commits)
    return Restored(verification, aside)


def _renew(connection: sqlite3.Connection, made: Path, source: Path, progress: Progress) -> tuple[Verification, State]:
    connection.execute("PRAGMA journal_mode = DELETE").fetchall()
    state = bring_up_to_date(connection, made)
    verification = in_snapshot(connection, lambda snapshot: examine(snapshot, progress))
    if verification.problems:
        raise StoreDamaged(str(source), "; ".join(verification.problems[:3]), "use another backup")
    return verification, opening.in_one_commit(connection, made, state, begin_anew)


def _give_to_owner_of(reference: Path, *files: Path) -> None:
    """Where an administrator restores what a service of another user's works with: leave that user the files."""
    owner = reference.stat()
    if os.geteuid() == 0:
        for file in files:
            os.chown(file, owner.st_uid, owner.st_gid)


def _set_aside(place: Path) -> Path | None:
    """Give the present database another name, together with what a death left beside it, which goes first."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    aside, count = place.with_name(f"{place.name}.replaced-{stamp}"), 1
    while aside.exists():
        count += 1
        aside = place.with_name(f"{place.name}.replaced-{stamp}-{count}")
    was_there = place.exists()
    for present, kept in zip((*left_beside(place), place), (*left_beside(aside), aside), strict=True):
        if present.exists():
            present.rename(kept)
    place.with_name(f"{place.name}-shm").unlink(missing_ok=True)
    return aside if was_there else None
