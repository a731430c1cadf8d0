"""The file that holds the keys of one device, and the one thread that touches it.

Each device has a file of its own beside the database, readable by its owner only, its keys encrypted with the pickle
key. The database's owner lock covers it: nobody else opens it while the service runs.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack
from urllib.parse import quote

import structlog
from peewee import DatabaseError, PeeweeException  # type: ignore[import-untyped]

from bot.matrix.e2ee import sums
from bot.matrix.e2ee.key_store import KeyStore
from bot.matrix.errors import KeysDamaged, KeysUnavailable, PickleKeyWrong

log = structlog.get_logger(__name__)

T = TypeVar("T")
Args = TypeVarTuple("Args")

_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS musher_facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS musher_rooms (room_id TEXT PRIMARY KEY, rules TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS musher_owners (room_id TEXT NOT NULL, sender_key TEXT NOT NULL, "
    "session_id TEXT NOT NULL, owner TEXT NOT NULL, PRIMARY KEY (room_id, session_id, sender_key))",
    "CREATE TABLE IF NOT EXISTS musher_pending (event_id TEXT PRIMARY KEY, room_id TEXT NOT NULL, "
    "sender TEXT NOT NULL, session_id TEXT NOT NULL, event TEXT NOT NULL, since_ms INTEGER NOT NULL, "
    "asked_ms INTEGER, emitted INTEGER NOT NULL DEFAULT 0)",
    "CREATE TABLE IF NOT EXISTS musher_noticed (room_id TEXT NOT NULL, sender TEXT NOT NULL, session_id TEXT NOT NULL, "
    "PRIMARY KEY (room_id, sender, session_id))",
)
_PASSING: Final = frozenset(
    (
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    )
)
"""What SQLite says of a disk or of permissions; all else that it says of a key file comes from what the file holds."""
_FILE_FORMATS: Final = frozenset((1, 2))
"""Bytes 18 and 19 of the header (https://sqlite.org/fileformat.html). SQLite won't write to a file with any other."""


class Vault:
    """The key files beside one database. `run` runs a function on the thread that owns them."""

    def __init__(self, beside: Path, pickle_key: str | None) -> None:
        self._beside = beside
        self._given_key = pickle_key
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="keys")
        self._opened: list[Any] = []
        self._path = beside
        self.store: Any = None

    async def run(self, work: Callable[[Unpack[Args]], T], *args: *Args) -> T:
        """Run `work` on the vault's thread, to its end even if the caller is cancelled meanwhile.

        Raises `KeysUnavailable` and `KeysDamaged`.
        """
        try:
            return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work, *args))
        except (DatabaseError, sqlite3.Error, UnicodeDecodeError, OSError) as error:  # SQLite quotes what is damaged
            raised = KeysUnavailable if isinstance(error, OSError) or _passes(error) else KeysDamaged
            raise raised(str(self._path), " ".join(str(error).split())) from error

    async def close(self) -> None:
        """Close the files and end the thread."""
        await self.run(self.shut)
        self._thread.shutdown(wait=False)

    # --- on the thread only

    def open(self, user_id: str, device_id: str) -> None:
        """Open the file of a device, and make it if there is none. Raises `PickleKeyWrong`, and SQLite's errors."""
        # A file that was open before stays so: a send under way may still be writing to it.
        self._path = path = self.file(device_id)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
        _check_header(path)
        self.store = KeyStore(user_id, device_id, str(path.parent), self.pickle_key(), path.name)
        self._opened.append(self.store)
        ((sound,),) = self.sql("PRAGMA integrity_check(1)")
        if sound != "ok":
            raise DatabaseError(sound)
        for table in _TABLES:
            self.sql(table)
        sums.watch(self.store.database, self.sql)
        try:
            self.store.load_account()
        except ValueError as error:  # the root of all errors of vodozemac
            raise PickleKeyWrong(str(path)) from error

    def shut(self) -> None:
        """Close all files."""
        while self._opened:
            self._opened.pop().database.close()

    def file(self, device_id: str) -> Path:
        """Where the keys of a device are."""
        return self._beside.with_name(f"{self._beside.name}.keys-{quote(device_id, safe='')}")

    def remove_others(self, device_id: str) -> None:
        """Delete the files of all devices but this one."""
        kept = self.file(device_id).name
        for path in self._beside.parent.glob(f"{self._beside.name}.keys-*"):
            if not path.name.startswith(kept):
                path.unlink()
                log.info("keys_of_former_device_deleted", file=path.name)

    def pickle_key(self) -> str:
        """The secret that encrypts the keys at rest: as configured, or made once and kept beside the database."""
        if self._given_key is not None:
            return self._given_key
        path = self._beside.with_name(f"{self._beside.name}.pickle-key")
        if not path.exists():
            made = path.with_name(f"{path.name}.new")
            with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32))
                file.flush()
                os.fsync(file.fileno())
            made.replace(path)
        return path.read_text(errors="replace").strip()

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        return list(self.store.database.execute_sql(statement, values).fetchall())

    def atomic(self) -> Any:
        """A context in which all that is written is committed together, or not at all."""
        return self.store.database.atomic()

    def fact(self, name: str) -> str | None:
        """A fact of the file itself."""
        rows = self.sql("SELECT value FROM musher_facts WHERE name = ?", name)
        return str(rows[0][0]) if rows else None

    def note(self, name: str, value: str) -> None:
        """Keep a fact."""
        self.sql("INSERT OR REPLACE INTO musher_facts VALUES (?, ?)", name, value)


def _passes(error: Exception) -> bool:
    """Whether an error of peewee's or SQLite's tells of something that passes, and not of damage."""
    while isinstance(error, PeeweeException) and hasattr(error, "orig"):
        error = error.orig
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _PASSING


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        formats = file.read(20)[18:]
    if not _FILE_FORMATS.issuperset(formats):
        raise DatabaseError("the file format in its header was altered")
