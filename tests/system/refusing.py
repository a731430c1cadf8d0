"""The service on a disk that turns read-only: `python -m tests.system.refusing FILE run --config …`.

As long as FILE is there, each call with which SQLite changes a file is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from bot.cli import main
from tests.crdt.disk import READ_ONLY, Call, Onlooker, watched


def read_only(armed: Path) -> Onlooker:
    """Refuse calls while the file `armed` is there."""

    def see(_call: Call, _put: Callable[[bytes], int]) -> int | None:
        return READ_ONLY if armed.exists() else None

    return see


if __name__ == "__main__":
    armed = Path(sys.argv.pop(1))
    with watched(read_only(armed)):
        sys.exit(main())
