"""How fast the homeserver may be asked: one shared pause after a failure, then one request that tries the water.

A fault is met with a pause that all share. When it is over, one request goes out as the probe; the others wait for
what becomes of it. So the rate of a fault is that of the pauses, however many rooms and loops have something to ask.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bot.matrix import RateLimited
from bot.trouble import Trouble

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 4.0
"""Back-off ends here: an answer has to come within 5 s of the end of a fault, and 4 s are gentle enough."""
PROBE_S: Final = 4.0
"""How long the others wait for a probe that hangs, before the next one goes out."""
LOOK_EVERY_S: Final = 0.1
"""How soon those that wait notice that a probe has worked."""
AFTERMATH_S: Final = 10.0
"""How long after a failure the homeserver is to be spared, even though it answers: it may fail at some things only."""


class Pace:
    """Tells when the homeserver may be asked. Every request to it waits for `ready` and reports what became of it."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random
    ) -> None:
        self.clock = clock
        self._jitter = jitter
        self._next_pause_s = FIRST_PAUSE_S
        self._resume_at = 0.0
        self._asked_until = 0.0
        self._probe_until = 0.0
        self._recovering = False
        self._failed_at = -math.inf
        self._trouble = Trouble("homeserver_pause", level="info", clock=clock)

    @property
    def open(self) -> bool:
        """Whether anybody may ask: no pause is on, and there is no doubt that the homeserver answers."""
        return not self._recovering and self._pause_left() <= 0

    async def ready(self) -> None:
        """Wait until no pause is on and, after one, until a probe has worked; or be the probe."""
        while not self._may_go():
            left = self._pause_left()
            await asyncio.sleep(left if left > 0 else LOOK_EVERY_S)

    async def spare(self, since: float, seconds: float) -> None:
        """Wait until `seconds` after the moment `since`, where something has failed within the last seconds."""
        if self.clock() - self._failed_at < AFTERMATH_S:
            await asyncio.sleep(since + seconds - self.clock())

    def _pause_left(self) -> float:
        return max(self._resume_at, self._asked_until) - self.clock()

    def _may_go(self) -> bool:
        if self._pause_left() > 0:
            return False
        if not self._recovering:
            return True
        if self.clock() < self._probe_until:
            return False
        self._probe_until = self.clock() + PROBE_S
        return True

    def worked(self) -> None:
        """Report an answer: all may ask again, but for a pause that the server has asked for."""
        self._next_pause_s = FIRST_PAUSE_S
        self._recovering = False
        self._resume_at = self._probe_until = 0.0
        self._trouble.over()

    def doubted(self, error: Exception) -> None:
        """Report a failure that may be of one room alone: the next request shows it, the others wait for that one.

        When the homeserver is in doubt already, this is a failure like any other.
        """
        self._failed_at = self.clock()
        if self.open:
            self._recovering = True
        else:
            self.failed(error)

    def silent(self) -> None:
        """Report that an answer is overdue: whoever has something new to ask waits for a probe."""
        self._recovering = True
        self._failed_at = self.clock()
        self._trouble.met("silence")

    def failed(self, error: Exception) -> None:
        """Report a failure that passes by itself: pause longer each time, with jitter, and as long as the server asks.

        A failure that is reported while a pause is on belongs to that pause; only the server's own wish prolongs it.
        """
        self._failed_at = now = self.clock()
        if isinstance(error, RateLimited):
            self._asked_until = max(self._asked_until, now + error.retry_after_s)
        if self._resume_at <= now:
            # Also where the server asks for less: one that says "at once" each time would be asked in a hot loop.
            self._resume_at = now + self._next_pause_s * (0.75 + self._jitter() / 4)
            self._next_pause_s = min(self._next_pause_s * 2, LONGEST_PAUSE_S)
        self._recovering = True
        self._probe_until = 0.0
        self._trouble.met(type(error).__name__, seconds=round(self._pause_left(), 2))


FIRST_ROOM_PAUSE_S: Final = 1.0
SHARE_S: Final = 3.0
"""Of the rooms that fail, one is tried in this time; each try is two requests, beside those of the syncs."""
LONGEST_COMMON_PAUSE_S: Final = 4.0
"""For rooms of which nothing shows that they alone fail: after the end of a fault they have to be served soon."""
LONGEST_ROOM_PAUSE_S: Final = 60.0
"""For a room that fails while others are served."""
_NOTICE_WITHIN_S: Final = 0.25


@dataclass(slots=True)
class _Failing:
    """A room's back-off; `since` and `resume_at` by the clock of `RoomPauses`."""

    since: float
    resume_at: float
    pause_s: float = 0.0
    tried: bool = False
    """Whether it has failed itself; else it only waits for a moment of its own, since others do."""


class RoomPauses:
    """The back-off of rooms that can't be sent to while the homeserver otherwise answers.

    Each has a moment of its own, apart from those of the others: together they cost less than a request a second, and
    the end of a fault is soon noticed. While nothing shows that a room fails alone, those that have something new to
    send are given a moment, too. One that works again shows that the fault was a common one, and has the others tried
    at once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failing: dict[str, _Failing] = {}
        self._served_at = 0.0

    async def ready(self, room_id: str) -> None:
        """Wait until the room may be tried."""
        if self.holds(room_id):
            now = self._clock()
            self._failing.setdefault(room_id, _Failing(now, self._free_moment(room_id, now)))
        while (left := self.left(room_id)) > 0:  # noqa: ASYNC110 - the pause may be called off while we sleep
            await asyncio.sleep(min(left, _NOTICE_WITHIN_S))

    def holds(self, room_id: str) -> bool:
        """Whether the room has to wait for a moment of its own: it fails, or others do, and maybe not they alone."""
        return room_id in self._failing or any(each.since > self._served_at for each in self._failing.values())

    def left(self, room_id: str) -> float:
        """Seconds until the room may be tried; 0 or less when it may."""
        failing = self._failing.get(room_id)
        return failing.resume_at - self._clock() if failing else 0.0

    def is_failing(self, room_id: str) -> bool:
        """Whether the room failed when it was last tried, or waits to be tried because others fail."""
        return room_id in self._failing

    def failed(self, room_id: str, *, alone: bool = True) -> float:
        """Report a failure of the room; returns the seconds that it has to wait now.

        One that does not come `alone`, since nothing of the homeserver answers, makes no later wait longer.
        """
        now = self._clock()
        failing = self._failing.setdefault(room_id, _Failing(now, now))
        failing.tried = True
        if alone:
            longest = LONGEST_ROOM_PAUSE_S if self._served_at > failing.since else LONGEST_COMMON_PAUSE_S
            failing.pause_s = min(failing.pause_s * 2 or FIRST_ROOM_PAUSE_S, longest)
        failing.resume_at = self._free_moment(room_id, now + failing.pause_s)
        return failing.resume_at - now

    def _free_moment(self, room_id: str, at: float) -> float:
        """The first moment from `at` on that is apart from those at which other rooms are tried, within a minute."""
        latest = self._clock() + LONGEST_ROOM_PAUSE_S
        for taken in sorted(failing.resume_at for other, failing in self._failing.items() if other != room_id):
            if abs(taken - at) < SHARE_S:
                at = taken + SHARE_S
        return min(at, latest)

    def worked(self, room_id: str) -> bool:
        """Report that the room was served; returns whether it had failed before."""
        before, self._served_at = self._served_at, self._clock()
        served = self._failing.pop(room_id, None)
        for failing in self._failing.values():
            if not failing.tried or (served is not None and (served.tried or failing.since > before)):
                failing.resume_at = self._served_at
        return served is not None and served.tried
