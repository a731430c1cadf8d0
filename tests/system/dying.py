"""The service on a disk that is its death: `python -m tests.system.dying FILE CALL HOW run --config …`.

As long as FILE is there, the calls with which SQLite changes files are counted, and the process kills itself at number
CALL. HOW says what becomes of that one: "before" it is made, or "torn", with half of its bytes written.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from bot.cli import main
from tests.crdt.disk import Call, Onlooker, watched


def deadly(armed: Path, number: int, how: str) -> Onlooker:
    """Kill this process at the call `number` of those that are made while the file `armed` is there."""
    made = 0

    def see(call: Call, put: Callable[[bytes], int]) -> None:
        nonlocal made
        made += armed.exists()
        if made == number:
            if how == "torn" and call.kind == "write":
                put(call.data[: len(call.data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    return see


if __name__ == "__main__":
    armed, number, how = sys.argv[1:4]
    del sys.argv[1:4]
    with watched(deadly(Path(armed), int(number), how)):
        sys.exit(main())
