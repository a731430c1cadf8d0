"""Whether the files of an open database still stand where they were opened. Asked before every commit.

`os.stat` asks for a file's times as well. From 6.13 on, Linux then gives the next write into the file a time of its
own, which the file system has to note: that cost a sixth of a commit on ext4, and of the next one, whoever made it. So
Linux is asked for the file's number alone (https://man7.org/linux/man-pages/man2/statx.2.html).
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import Final

from crdt.errors import StoreUnavailable
from crdt.owner import lock_path

Files = dict[bytes, tuple[int, ...] | None]
"""Which files stand under the names of a database, its WAL and its lock: number and device; `None` for no file."""

_AT_FDCWD: Final = -100
_STATX_INO: Final = 0x100
_Statx: Final = ctypes.c_char * 256
_NUMBER_AND_DEVICE: Final = struct.Struct("=32xQ96xII")
_statx: Final = getattr(ctypes.CDLL(None), "statx", None)


def files_of(path: Path) -> Files:
    """Find out which files a database, its WAL and its lock are."""
    names = [os.fsencode(file) for file in (path, f"{path}-wal", lock_path(path))]
    return {name: _file_at(name) for name in names}


def check_in_place(path: Path, files: Files) -> None:
    """Refuse to write into files that were moved, deleted or replaced since they were opened: no start would find it.

    SQLite itself looks only at files that have no WAL. Without its lock in place, another process may own the database.
    """
    for name, file in files.items():
        if _file_at(name) != file:
            problem = "or its WAL or lock was moved, deleted or replaced while it was open"
            raise StoreUnavailable(str(path), problem, "put it back, or start Musher again")


def _file_at(name: bytes) -> tuple[int, ...] | None:
    found = _Statx()
    if _statx is not None and _statx(_AT_FDCWD, name, 0, _STATX_INO, found) == 0:
        return _NUMBER_AND_DEVICE.unpack_from(found)
    try:  # no such file, or no such call
        status = os.stat(name)
    except OSError:
        return None
    return status.st_ino, os.major(status.st_dev), os.minor(status.st_dev)
