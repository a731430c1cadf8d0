"""The figures as a picture: for each what must hold, a bar that ends before its limit if it does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from benchmarks.figure import Figure
from benchmarks.table import number

WIDTH = 980
LINE = 26
TOP = 64
LEFT = 490
LIMIT_AT = 740
"""Where the limit stands; a factor of two is as long as another, to either side."""
OCTAVE = 46
_MARGIN = 12
_LEAST = 1e-6


def draw(facts: Mapping[str, str], figures: Sequence[Figure]) -> str:
    """An SVG of the figures that have a limit."""
    shown = [figure for figure in figures if figure.limit]
    height = TOP + LINE * len(shown) + 40
    lines = [text for place, figure in enumerate(shown) for text in _bar(figure, TOP + LINE * place)]
    machine = f"{facts.get('processor', '?')}, Python {facts.get('Python', '?')}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
            "<title>Musher's figures beside what they must be</title>",
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            _text(_MARGIN, 26, "How fast, beside whom", size=18),
            _text(_MARGIN, 46, f"{machine}; a bar that ends left of the line is better than it must be", colour="#555"),
            f'<line x1="{LIMIT_AT}" x2="{LIMIT_AT}" y1="{TOP - 8}" y2="{height - 36}" stroke="#333"/>',
            _text(LIMIT_AT, TOP - 12, "must", size=10, colour="#333", anchor="middle"),
            *lines,
            _text(
                *(
                    _MARGIN,
                    height - 14,
                    "Lengths of the same size are the same factor; a thin line: the rounds' quartiles.",
                ),
                colour="#555",
            ),
            "</svg>\n",
        ]
    )


def badness(figure: Figure, value: float) -> float:
    """How far a value is beyond its limit, in factors of two; below zero it is within."""
    value = max(value, _LEAST)
    if figure.at_most is not None:
        return math.log2(value / figure.at_most)
    assert figure.at_least is not None
    return math.log2(figure.at_least / value)


def _bar(figure: Figure, y: int) -> list[str]:
    end, low, high = (_place(badness(figure, value)) for value in (figure.value, figure.low, figure.high))
    colour = "#3a7d44" if figure.holds else "#c0392b"
    value = f"{number(figure.value)} {figure.unit}, must {figure.limit}"
    beside = f" / {figure.beside}" if figure.beside else ""
    middle = y + LINE // 2
    return [
        _text(_MARGIN, middle + 4, f"{figure.row}  {figure.what}{beside}", size=10),
        f'<rect x="{LEFT}" y="{y + 5}" width="{max(1, end - LEFT)}" height="{LINE - 12}" fill="{colour}"/>',
        f'<line x1="{min(low, high)}" x2="{max(low, high)}" y1="{middle}" y2="{middle}" stroke="#000"/>',
        _text(WIDTH - _MARGIN, middle + 4, value, size=10, anchor="end"),
    ]


def _place(octaves: float) -> int:
    return round(min(WIDTH - 130, max(LEFT + 4, LIMIT_AT + octaves * OCTAVE)))


def _text(x: int, y: int, text: str, *, size: int = 12, colour: str = "#111", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'
