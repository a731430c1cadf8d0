"""A seat at a terminal: a process on a real pseudo-terminal, typed to and read like a person would."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Final, Self

REPOSITORY: Final = Path(__file__).parents[3]
PATIENCE_S: Final = 60.0


class Seat:
    """A terminal of 80x24 in which Python runs with `arguments`, until the `with` block ends."""

    def __init__(self, *arguments: str, folder: Path = REPOSITORY, **environment: str) -> None:
        self.master, self.slave = os.openpty()
        self.resize(24, 80)
        self._modes = termios.tcgetattr(self.slave)
        defaults = {"PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=os.environ | defaults | environment,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
        )
        self.seen = ""
        """All that was printed, as the terminal got it."""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def read_until(self, pattern: str) -> str:
        """Read until what is new holds `pattern`, and return what is new, without styles and cursor moves."""
        new, end = b"", time.monotonic() + PATIENCE_S
        while not re.search(pattern, text := _plain(new)):
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, f"{pattern!r} was not seen in {text!r}, after {self.seen!r}"
            new += os.read(self.master, 65_536)
        self.seen += new.decode(errors="replace")
        return text

    def assert_left_in_order(self) -> None:
        """Wait for the process to end well, with the terminal as it was before."""
        assert self.process.wait(PATIENCE_S) == 0
        assert termios.tcgetattr(self.slave) == self._modes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def _plain(printed: bytes) -> str:
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", printed.decode(errors="replace"))
