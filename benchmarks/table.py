"""The figures as text."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.figure import Figure

_WIDTHS = (3, 68, 34, 9, 15, 8, 11, 11, 6)
_HEAD = ("row", "what", "beside", "figure", "spread", "must", "ours", "other", "holds")


def facts(found: Mapping[str, str]) -> str:
    """The machine's facts."""
    return "\n".join(f"{name:<22}{value}" for name, value in found.items())


def head() -> str:
    """The table's head."""
    return _row(_HEAD)


def line(figure: Figure) -> str:
    """One figure."""
    holds = "" if not figure.limit else "yes" if figure.holds else "NO"
    spread = f"{number(figure.low)}-{number(figure.high)}"
    value = f"{number(figure.value)} {figure.unit}"
    return _row((figure.row, figure.what, figure.beside, value, spread, figure.limit, figure.ours, figure.other, holds))


def number(value: float) -> str:
    """A number with as many digits as it deserves."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _row(cells: tuple[str, ...]) -> str:
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()
