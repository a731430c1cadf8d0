"""A disk that can be watched and broken: stands between SQLite and its files, call by call.

SQLite reaches its files through a table of functions, its VFS. `watched` makes one the default in which every call that
changes a file is first shown to an `onlooker`, for all connections of this process that are opened meanwhile. This
needs no tracer and no compiler, only the libsqlite3 that Python itself uses.
"""

from __future__ import annotations

import _sqlite3
import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, addressof, c_char_p, c_int, c_int64, c_void_p, cast, sizeof, string_at
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

OK: Final = 0
IO_ERROR: Final = 10
"""SQLITE_IOERR: what the kernel's EIO becomes."""
READ_ONLY: Final = 8
"""SQLITE_READONLY: what the kernel's EROFS becomes."""
FULL: Final = 13
"""SQLITE_FULL: what the kernel's ENOSPC becomes."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call that changes a file. `kind` is "write", "truncate" (`offset` is the new size), "sync" or "delete"."""

    kind: str
    path: Path
    offset: int = 0
    data: bytes = field(default=b"", repr=False)


Onlooker = Callable[[Call, Callable[[bytes], int]], int | None]
"""Sees a call before it is made. It may return a result code of SQLite's instead of `None`: then the call is not made.
Its second argument writes other bytes in the place of a write's: for one that tears."""

_Open = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
_Delete = ctypes.CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_Write = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_Truncate = ctypes.CFUNCTYPE(c_int, c_void_p, c_int64)
_Sync = ctypes.CFUNCTYPE(c_int, c_void_p, c_int)
_Close = ctypes.CFUNCTYPE(c_int, c_void_p)


class _Vfs(ctypes.Structure):
    """`sqlite3_vfs`, version 3 (https://sqlite.org/c3ref/vfs.html)."""

    _fields_ = (
        ("version", c_int),
        ("file_size", c_int),
        ("longest_name", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", _Open),
        ("delete", _Delete),
        ("rest", c_void_p * 14),
    )


class _Methods(ctypes.Structure):
    """`sqlite3_io_methods`, version 3 (https://sqlite.org/c3ref/io_methods.html)."""

    _fields_ = (
        ("version", c_int),
        ("close", _Close),
        ("read", c_void_p),
        ("write", _Write),
        ("truncate", _Truncate),
        ("sync", _Sync),
        ("rest", c_void_p * 13),
    )


class _File(ctypes.Structure):
    _fields_ = (("methods", c_void_p),)


def library() -> Any | None:
    """The SQLite that this Python uses; `None` where it lets nobody at its functions."""
    sqlite = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    try:
        sqlite.sqlite3_vfs_find.restype = c_void_p
    except AttributeError:  # built into the interpreter, and hidden there
        return None
    sqlite.sqlite3_vfs_register.argtypes = (c_void_p, c_int)
    sqlite.sqlite3_vfs_unregister.argtypes = (c_void_p,)
    return sqlite


class _Watch:
    """The table of functions that goes between; it must outlive every file that was opened through it."""

    def __init__(self, original: int, onlooker: Onlooker) -> None:
        self._onlooker = onlooker
        self._original = _Vfs.from_address(original)
        self.vfs = _Vfs()
        ctypes.memmove(addressof(self.vfs), original, sizeof(_Vfs))
        self.vfs.name = b"watched"
        self.vfs.open, self.vfs.delete = _Open(self._open), _Delete(self._delete)
        self._paths: dict[int, Path] = {}
        self._tables: dict[int, _Methods] = {}

    def _open(self, vfs: int, name: int | None, file: int, flags: int, found: Any) -> int:
        # The name is passed on where it stands: the file keeps no copy of it.
        result: int = self._original.open(vfs, name, file, flags, found)
        opened = _File.from_address(file)
        if result == OK and name is not None and opened.methods:
            self._paths[file] = Path(string_at(name).decode())
            opened.methods = addressof(self._between(opened.methods))
        return result

    def _delete(self, vfs: int, name: bytes, sync_folder: int) -> int:
        call = Call("delete", Path(name.decode()))
        return self._see(call, lambda: self._original.delete(vfs, name, sync_folder))

    def _between(self, table: int) -> _Methods:
        if table not in self._tables:
            original, ours = _Methods.from_address(table), _Methods()
            ctypes.memmove(addressof(ours), table, sizeof(_Methods))
            ours.write, ours.truncate = _Write(self._writer(original)), _Truncate(self._truncater(original))
            ours.sync, ours.close = _Sync(self._syncer(original)), _Close(self._closer(original))
            self._tables[table] = ours
        return self._tables[table]

    def _writer(self, original: _Methods) -> Callable[[int, int, int, int], int]:
        def write(file: int, data: int, size: int, offset: int) -> int:
            def put(other: bytes) -> int:
                return int(original.write(file, cast(c_char_p(other), c_void_p), len(other), offset))

            call = Call("write", self._paths[file], offset, string_at(data, size))
            return self._see(call, lambda: original.write(file, data, size, offset), put)

        return write

    def _truncater(self, original: _Methods) -> Callable[[int, int], int]:
        return lambda file, size: self._see(
            Call("truncate", self._paths[file], size), lambda: original.truncate(file, size)
        )

    def _syncer(self, original: _Methods) -> Callable[[int, int], int]:
        return lambda file, flags: self._see(Call("sync", self._paths[file]), lambda: original.sync(file, flags))

    def _closer(self, original: _Methods) -> Callable[[int], int]:
        def close(file: int) -> int:
            self._paths.pop(file, None)
            return int(original.close(file))

        return close

    def _see(self, call: Call, make: Callable[[], int], put: Callable[[bytes], int] = lambda _: IO_ERROR) -> int:
        result = self._onlooker(call, put)
        return make() if result is None else result


@contextmanager
def watched(onlooker: Onlooker) -> Iterator[None]:
    """Show every change that SQLite makes to a file to `onlooker`, and let it decide. All must be closed at the end."""
    sqlite = library()
    assert sqlite is not None
    original = sqlite.sqlite3_vfs_find(None)
    watch = _Watch(original, onlooker)
    sqlite.sqlite3_vfs_register(addressof(watch.vfs), 1)
    try:
        yield
    finally:
        sqlite.sqlite3_vfs_unregister(addressof(watch.vfs))
        sqlite.sqlite3_vfs_register(original, 1)
