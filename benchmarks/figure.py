"""A figure: two things measured in turns in one run, and the ratio of the two with its spread."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

Round = tuple[Sequence[float], Sequence[float]]
"""What one round measured: ours, theirs."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `value` is ours / other, or a plain quantity where `unit` says so.

    `at_most` or `at_least` is what must hold; with neither the line informs. `low` and `high` are the quartiles of the
    rounds' values.
    """

    row: str
    what: str
    beside: str
    value: float
    low: float
    high: float
    rounds: int
    unit: str = "×"
    ours: str = ""
    other: str = ""
    at_most: float | None = None
    at_least: float | None = None
    details: dict[str, float | str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether the figure is as good as it must be."""
        above = self.at_most is not None and self.value > self.at_most
        below = self.at_least is not None and self.value < self.at_least
        return not (above or below)

    @property
    def limit(self) -> str:
        """What must hold, for people."""
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return f"≥ {self.at_least:g}" if self.at_least is not None else ""


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The spread of some values: their lower and upper quartile."""
    ordered = sorted(values)
    return ordered[len(ordered) // 4], ordered[math.ceil(len(ordered) * 3 / 4) - 1]


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def ratio(
    row: str,
    what: str,
    beside: str,
    rounds: Sequence[Round],
    *,
    show: Callable[[float], str],
    at_most: float | None = None,
    at_least: float | None = None,
    swapped: bool = False,
    **details: float | str,
) -> Figure:
    """Ours / other: the median over the rounds of the ratio of each round's medians.

    With `swapped` the rounds hold other, ours: how many times less ours is.
    """
    values = [statistics.median(each[0]) / statistics.median(each[1]) for each in rounds]
    low, high = quartiles(values)
    ours, other = (statistics.median([one for each in rounds for one in each[side]]) for side in (swapped, not swapped))
    return Figure(
        *(row, what, beside, statistics.median(values), low, high, len(rounds)),
        ours=show(ours),
        other=show(other),
        at_most=at_most,
        at_least=at_least,
        details=dict(details),
    )


def quantity(
    row: str, what: str, values: Sequence[float], unit: str, at_most: float | None = None, **details: float | str
) -> Figure:
    """A plain quantity: the median of its measurements."""
    low, high = quartiles(values)
    return Figure(
        *(row, what, "", statistics.median(values), low, high, len(values)),
        unit=unit,
        at_most=at_most,
        details=dict(details),
    )


async def timed(work: Awaitable[object]) -> float:
    """Wait for something; returns the seconds that it took."""
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


def milliseconds(seconds: float) -> str:
    """A time for people."""
    return f"{seconds * 1e3:.3g} ms"


def microseconds(seconds: float) -> str:
    """A short time for people."""
    return f"{seconds * 1e6:.0f} µs"


def per_second(rate: float) -> str:
    """A rate for people."""
    return f"{rate:,.0f} /s"
