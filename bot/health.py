"""Tells whether this service can do its work: each part reports its own state, readiness is all of them together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

log = structlog.get_logger(__name__)

Clock = Callable[[], float]
"""Monotonic seconds."""

_UNREPORTED = "has not reported yet"


@dataclass(slots=True)
class _Part:
    required: bool = True
    reason: str | None = _UNREPORTED
    reported: bool = False
    well_at: float = 0.0
    changed_at: float = 0.0
    stale_after_s: float | None = None
    patience_s: float = 0.0
    failures: int = 0
    last_error: str | None = None
    last_error_at: float = 0.0


@dataclass(frozen=True, slots=True)
class PartState:
    """What is known of one part. `state` is "starting", "ok", "failing" or "silent"; times are in ISO 8601, UTC."""

    state: str
    since: str
    required: bool
    failures: int
    last_error: str | None
    last_error_at: str | None


class Health:
    """Knows of each registered part whether it is well; the service is ready while all required ones are.

    A part is not ready until its first `ok`. One with a `stale_after` must go on saying `ok`: silence for longer
    counts as failing. Without any part there is nothing to wait for. Each change of readiness is logged once;
    silence changes it when somebody asks next.
    """

    def __init__(self, *parts: str, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._began_at = clock()
        self._parts: dict[str, _Part] = {}
        self._was_ready = False
        self._told: frozenset[str] = frozenset()
        for name in parts:
            self.register(name)

    def register(self, name: str, *, required: bool = True, patience_s: float = 0.0) -> None:
        """Name a part; one that is known already keeps its state.

        The service is not ready until a `required` part is well. One with patience is only counted as failing when
        its failures have lasted for that many seconds.
        """
        self._parts.setdefault(name, _Part(required, changed_at=self._clock(), patience_s=patience_s))

    def stale_after(self, name: str, seconds: float) -> None:
        """Count a part as failing when its last `ok` is more than `seconds` ago.

        Raises:
            KeyError: no part of this name is registered.
        """
        self._parts[name].stale_after_s = seconds

    def ok(self, name: str) -> None:
        """Report that a part is well now.

        Raises:
            KeyError: no part of this name is registered.
        """
        part, now = self._parts[name], self._clock()
        if part.reason is not None:
            part.changed_at = now
        part.reason, part.reported, part.well_at = None, True, now
        self.ready()

    def failing(self, name: str, reason: str) -> None:
        """Report that a part can't do its work, until its next `ok`. `reason` is logged: it must hold no secret.

        Raises:
            KeyError: no part of this name is registered.
        """
        part, now = self._parts[name], self._clock()
        if part.reason is None or not part.reported:
            part.changed_at = now
        part.reason, part.reported = reason, True
        part.failures += 1
        part.last_error, part.last_error_at = reason, now
        self.ready()

    def ready(self) -> bool:
        """Whether every required part is well and has said so recently enough."""
        unready = self.unready()
        failing = frozenset(name for name in unready if self._parts[name].reported)
        is_ready = not unready
        if failing - self._told:
            log.warning("not_ready", reasons={name: unready[name] for name in sorted(failing)})
        elif is_ready and not self._was_ready:
            log.info("ready", parts=sorted(self._parts))
        # A part that fails from time to time while another one lasts is not told of each time.
        self._told = frozenset() if is_ready else self._told | failing
        self._was_ready = is_ready
        return is_ready

    def unready(self) -> dict[str, str]:
        """The required parts that stand in the way of readiness, each with its reason."""
        now = self._clock()
        reasons = {name: _reason(part, now) for name, part in self._parts.items() if part.required}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def age_s(self, name: str) -> float:
        """Seconds since a part last said `ok`; since the start, if it never did.

        Raises:
            KeyError: no part of this name is registered.
        """
        part = self._parts[name]
        return self._clock() - (part.well_at or self._began_at)

    def states(self) -> dict[str, PartState]:
        """What is known of each part, required or not."""
        now = self._clock()
        return {name: self._state(part, now) for name, part in self._parts.items()}

    def _state(self, part: _Part, now: float) -> PartState:
        state, since = ("ok" if part.reason is None else "failing"), part.changed_at
        if not part.reported:
            state = "starting"
        elif part.reason is None and _is_stale(part, now):
            state, since = "silent", part.well_at
        error_at = self._time(part.last_error_at, now) if part.last_error else None
        return PartState(state, self._time(since, now), part.required, part.failures, part.last_error, error_at)

    @staticmethod
    def _time(moment: float, now: float) -> str:
        return datetime.fromtimestamp(time.time() - (now - moment), UTC).isoformat(timespec="seconds")


def _is_stale(part: _Part, now: float) -> bool:
    return part.stale_after_s is not None and now - part.well_at > part.stale_after_s


def _reason(part: _Part, now: float) -> str | None:
    if part.reported and _is_stale(part, now):
        return part.reason or f"silent for more than {part.stale_after_s:g} s"
    if part.reported and part.reason is not None and part.well_at and now - part.changed_at < part.patience_s:
        return None
    return part.reason
