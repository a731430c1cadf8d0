"""How signals end a command: in order, from its first moment on, so that it cleans up behind itself.

Python does so for SIGINT alone. The service and the demo put handlers of their own in place once they can use them.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

_asked_for: list[int] = []


def end_by_signals() -> None:
    """Have SIGINT and SIGTERM end this process; one that was started to ignore them (`nohup`, `&`) still does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def asked_for() -> int | None:
    """Give the exit code that a signal asked for; `None` when none came.

    Where the signal comes in a function that SQLite calls, SQLite makes an error of its own of it.
    """
    return _asked_for[0] if _asked_for else None


def _end(number: int, frame: FrameType | None) -> None:
    # To end the service is no failure, also where it has hardly begun.
    _asked_for.append(0 if sys.argv[1:2] == ["run"] else 128 + number)
    sys.exit(_asked_for[0])
