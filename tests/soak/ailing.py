"""The service on a machine that ails: `python -m tests.soak.ailing FOLDER run --config …`.

Two files in FOLDER say what ails it, `disk` and `clock`. They are looked at whenever it matters: whoever writes them
(`tests.soak.machine`) steers a service that runs, and one that starts.
"""

from __future__ import annotations

import datetime
import random
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime as TrueDatetime
from pathlib import Path
from typing import Any, Final

from tests.crdt.disk import FULL, IO_ERROR, Call, Onlooker, library, watched

DISK: Final = ("full", "failing", "one error")
"""What `disk` may say: no file can grow; each call fails by a chance of `ODDS`; the next call fails, once."""
ODDS: Final = 1 / 25
REFUSED: Final = "refused"
"""A file of one byte for each call that failed."""


def ailing(folder: Path) -> Onlooker:
    """Fail those calls that the file `disk` says, and note each."""
    chance = random.Random()

    def see(call: Call, put: Callable[[bytes], int]) -> int | None:
        result = _result(folder / "disk", call, put, chance)
        if result is not None:
            with (folder / REFUSED).open("ab") as refused:
                refused.write(b".")
        return result

    return see


def _result(disk: Path, call: Call, put: Callable[[bytes], int], chance: random.Random) -> int | None:
    ailment = _said(disk)
    if ailment == "full":
        return FULL if _grows(call) else None
    if ailment == "failing" and chance.random() > ODDS:
        return None
    if ailment == "one error":
        disk.unlink(missing_ok=True)
    if ailment and call.kind == "write" and chance.random() < 0.5:
        put(call.data[: len(call.data) // 2])
    return IO_ERROR if ailment else None


def _grows(call: Call) -> bool:
    return call.kind == "write" and call.offset + len(call.data) > call.path.stat().st_size


def _said(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except FileNotFoundError:
        return ""


class _Shifting(type):
    """Lets a class that tells another time pass for `datetime` itself; what it makes are true ones."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, TrueDatetime)

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        return TrueDatetime(*arguments, **named)  # noqa: DTZ001 - as whoever calls it wants it


class _Shifted(TrueDatetime, metaclass=_Shifting):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return TrueDatetime.fromtimestamp(time.time(), tz)


def shift_clock(clock: Path) -> None:
    """Have the wall clock of this process go wrong by the seconds that the file says; for what is imported later."""
    true, true_ns = time.time, time.time_ns

    def shift_s() -> float:
        return float(_said(clock) or 0)

    time.time = lambda: true() + shift_s()
    time.time_ns = lambda: true_ns() + int(shift_s() * 1e9)
    datetime.datetime = _Shifted  # type: ignore[misc]


def run() -> int:
    """Run the command that follows the folder."""
    folder = Path(sys.argv.pop(1))
    shift_clock(folder / "clock")
    with watched(ailing(folder)) if library() else nullcontext():
        from bot.cli import main

        return main()


if __name__ == "__main__":
    sys.exit(run())
