"""Steers the machine that a service runs on: its disk, and its wall clock."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.soak.ailing import REFUSED

HOUR_S: Final = 3600.0
FARTHEST_S: Final = 20 * HOUR_S
"""Nearer than the day after which a message is too old to be answered."""
_SHIFTS: Final = ((60.0, HOUR_S), (HOUR_S, 12 * HOUR_S), (12 * HOUR_S, FARTHEST_S))


class Machine:
    """What ails the machine is told in a folder to `tests.soak.ailing`, which starts the service there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._shift_s = 0.0

    @property
    def launch(self) -> Sequence[str]:
        """What Python is to run so that the service is on this machine."""
        return ("-m", "tests.soak.ailing", str(self._folder))

    @property
    def refused(self) -> int:
        """How many calls the disk has refused."""
        refused = self._folder / REFUSED
        return refused.stat().st_size if refused.exists() else 0

    def break_disk(self, ailment: str) -> None:
        """Let the disk have one of the ailments of `tests.soak.ailing`."""
        self._say("disk", ailment)

    def mend_disk(self) -> None:
        """Let the disk be well."""
        (self._folder / "disk").unlink(missing_ok=True)

    def step_clock(self, chance: random.Random) -> str:
        """Set the wall clock right, or wrong by minutes, hours or more than half a day; returns how far it stepped."""
        nearest, farthest = chance.choice(_SHIFTS)
        shift_s = chance.choice([-1, 0, 1]) * chance.uniform(nearest, farthest)
        step_s, self._shift_s = shift_s - self._shift_s, shift_s
        self._say("clock", f"{shift_s:.3f}")
        return _told(step_s)

    def _say(self, name: str, what: str) -> None:
        new = self._folder / f"{name}.new"
        new.write_text(what, encoding="ascii")
        new.replace(self._folder / name)


def _told(step_s: float) -> str:
    if step_s == 0:
        return "as it was"
    far = "more than 12 h" if abs(step_s) > 12 * HOUR_S else "hours" if abs(step_s) > HOUR_S else "minutes"
    return f"{'forward' if step_s > 0 else 'back'} by {far}"
