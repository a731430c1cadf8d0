"""Tells whether this service can do its work: each part reports its own state, readiness is all of them together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

log = structlog.get_logger(__name__)

Clock = Callable[[], float]
"""Monotonic seconds."""


@dataclass(slots=True)
class _Part:
    reason: str | None = "has not reported yet"
    reported_at: float = 0.0
    stale_after: float | None = None


class Health:
    """Knows of each registered part whether it is well; the service is ready while all of them are.

    A part is not ready until its first `ok`. One with a `stale_after` must go on saying `ok`: silence for longer
    counts as failing. Without any part there is nothing to wait for. Each change of readiness is logged once;
    silence changes it when somebody asks next.
    """

    def __init__(self, *parts: str, clock: Clock = time.monotonic) -> None:
        self._parts = {name: _Part() for name in parts}
        self._clock = clock
        self._was_ready = False

    def register(self, name: str) -> None:
        """Name a part that must be well before the service is ready; one that is known already keeps its state."""
        self._parts.setdefault(name, _Part())

    def stale_after(self, name: str, seconds: float) -> None:
        """Count a part as failing when its last `ok` is more than `seconds` ago.

        Raises:
            KeyError: no part of this name is registered.
        """
        self._parts[name].stale_after = seconds

    def ok(self, name: str) -> None:
        """Report that a part is well now.

        Raises:
            KeyError: no part of this name is registered.
        """
        part = self._parts[name]
        part.reason, part.reported_at = None, self._clock()
        self.ready()

    def failing(self, name: str, reason: str) -> None:
        """Report that a part can't do its work, until its next `ok`. `reason` is logged: it must hold no secret.

        Raises:
            KeyError: no part of this name is registered.
        """
        self._parts[name].reason = reason
        self.ready()

    def ready(self) -> bool:
        """Whether every registered part is well and has said so recently enough."""
        unready = self.unready()
        is_ready = not unready
        if is_ready != self._was_ready:
            self._was_ready = is_ready
            if is_ready:
                log.info("ready", parts=sorted(self._parts))
            else:
                log.warning("not_ready", reasons=unready)
        return is_ready

    def unready(self) -> dict[str, str]:
        """The parts that stand in the way of readiness, each with its reason."""
        now = self._clock()
        reasons = {name: _reason(part, now) for name, part in self._parts.items()}
        return {name: reason for name, reason in reasons.items() if reason is not None}


def _reason(part: _Part, now: float) -> str | None:
    if part.reason is None and part.stale_after is not None and now - part.reported_at > part.stale_after:
        return f"silent for more than {part.stale_after:g} s"
    return part.reason
