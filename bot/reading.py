"""Reads the files that a person names, whatever they are: no size fills the memory, no silence lasts for ever."""

from __future__ import annotations

import errno
import os
import select
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 16 * 1024 * 1024
"""Far more than any configuration or secret has."""
SILENCE_S: Final = 30.0
"""How long a pipe may stay silent: long enough for a person who unlocks a secret first."""


def read_whole(path: Path) -> bytes:
    """Read a file, or a pipe until its writers are gone. Raises `OSError`, also for more than `MAX_BYTES`."""
    content = read_up_to(path, MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"is larger than {MAX_BYTES // 1024**2} MiB", str(path))
    return content


def read_up_to(path: Path, size: int) -> bytes:
    """Read at most `size` bytes of a file or a pipe. Raises `OSError`."""
    content = bytearray()
    somebody_came = False
    with open(path, "rb", buffering=0, opener=_without_waiting) as stream:
        writers = select.poll()
        writers.register(stream, select.POLLIN)
        while len(content) < size:
            chunk = stream.read(size - len(content))
            if chunk:
                content += chunk
            elif chunk == b"" and (content or somebody_came):
                break
            elif not writers.poll(SILENCE_S * 1000):
                raise OSError(errno.ETIMEDOUT, f"nobody wrote into it for {SILENCE_S:g} s", str(path))
            else:
                somebody_came = True
    return bytes(content)


def _without_waiting(path: str, flags: int) -> int:
    """Open also a pipe that nobody writes into."""
    return os.open(path, flags | os.O_NONBLOCK)
