"""What can go wrong in the store, one class per state of the world.

Every class builds its own message: what happened, to what, and what to do next.
All of them descend from `CrdtError`; the store lets no other exception of its own out.
"""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path


class CrdtError(Exception):
    """The root of every error that the store raises."""


class InvalidEvent(CrdtError):
    """An event, or a field of one, is not what the log accepts; nothing was stored."""

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        self.problem = problem
        super().__init__(f"invalid event: {field} {problem}")


class UnknownScope(CrdtError):
    """A session was to be written with a scope that this version does not know."""

    def __init__(self, scope: object) -> None:
        self.scope = scope
        super().__init__(f'unknown scope {scope!r}: the only scope that can be written is "single-sled"')


class StoreClosed(CrdtError):
    """The store was used after it had been closed."""

    def __init__(self, path: str) -> None:
        super().__init__(f"the store {path} is closed: open it again with Store.open()")


class StoreBusy(CrdtError):
    """Another process owns the database."""

    def __init__(self, path: str, owner: str) -> None:
        super().__init__(
            f"the database {path} is in use by another process ({owner}): stop that process first, or use another path"
        )


class StoreUnavailable(CrdtError):
    """The database can't be opened, read or written at present; what was asked for did not happen."""

    def __init__(self, path: str, problem: str, advice: str) -> None:
        self.path = path
        super().__init__(f"the database {path} {problem}: {advice}")


class StoreFull(StoreUnavailable):
    """There is no room left on the disk; nothing of the refused write was stored."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "can't grow, the disk is full", "make room; a Musher that runs goes on by itself")


class StoreDamaged(CrdtError):
    """The stored bytes are not what was written; nothing was changed."""

    def __init__(self, path: str, problem: str, advice: str = "restore a backup with 'musher db restore FILE'") -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"the database {path} is damaged: {problem}; {advice}")


class BackupExists(CrdtError):
    """A backup was to be written over a file that is there already."""

    def __init__(self, path: str) -> None:
        super().__init__(f"the file {path} exists already: name another file, or overwrite it with --force")


class StoreNewer(CrdtError):
    """The database was written by a newer Musher."""

    def __init__(self, path: str, found: int, known: int) -> None:
        super().__init__(
            f"the database {path} has schema {found}, this Musher knows up to {known}: "
            "run the newer Musher that wrote it, or restore a backup from before the upgrade"
        )


class SledMismatch(CrdtError):
    """The database belongs to another sled than the one that was asked for."""

    def __init__(self, path: str, stored: str, asked: str) -> None:
        super().__init__(
            f"the database {path} belongs to sled {stored!r}, not {asked!r}: "
            f"set sled.id to {stored!r}, remove it, or point store.path at another file"
        )


class TurnOpen(CrdtError):
    """A session was to be rolled while one of its turns has no reply yet."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id} has a turn without a reply: complete it, then roll")


class MessageChanged(CrdtError):
    """A message that a turn was to take was edited, taken back or settled after it had been read; nothing was begun."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"message {key} is not what was read any more: read what waits again, and choose again")


class UnknownTurn(CrdtError):
    """A turn was to be completed that was never begun."""

    def __init__(self, session_id: str, key: str) -> None:
        super().__init__(f"no turn {key} was begun in session {session_id}: call begin_turn() first")


# What SQLite and its module say of damage under codes that stand for anything.
_OF_OUR_FUNCTIONS = "user-defined function raised exception"  # all that they can't take is text that is none
_SIGNS_OF_DAMAGE = ("decode to UTF-8", "unsupported file format", _OF_OUR_FUNCTIONS)


def translate(path: Path, error: sqlite3.Error | OSError | UnicodeDecodeError) -> CrdtError:
    """Say in the store's own words what SQLite or the file system reported."""
    if isinstance(error, UnicodeDecodeError):  # of SQLite's own message, which quotes what it can't read
        return StoreDamaged(str(path), error.object.decode(errors="replace"))
    if isinstance(error, OSError):
        return _translate_os_error(path, error)
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if code is not None else None
    # Without room for its shared memory, SQLite calls that an I/O error.
    if primary == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE:
        return StoreFull(str(path))
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or any(
        sign in str(error) for sign in _SIGNS_OF_DAMAGE
    ):
        no_text = _OF_OUR_FUNCTIONS in str(error)
        return StoreDamaged(str(path), "a row holds text that can't be read" if no_text else str(error))
    if code == sqlite3.SQLITE_READONLY_ROLLBACK:
        return StoreUnavailable(
            str(path), "was left in the midst of a change", "start 'musher run' once, which undoes it"
        )
    return StoreUnavailable(str(path), f"failed ({error})", "check the disk and the permissions of its folder")


def _translate_os_error(path: Path, error: OSError) -> CrdtError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(str(path))
    reason = error.strerror or str(error)
    return StoreUnavailable(str(path), f"can't be opened ({reason})", "check that its folder exists and is writable")
