"""The benchmarks as a sceptic runs them: a row that breaks, a figure that is not what it must be, the picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import picture
from benchmarks.figure import microseconds, ratio


def test_a_row_that_breaks_off_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = (benchmarks.Row("0", "a_module_that_is_not_there"), benchmarks.Row("1", "append"))
    monkeypatch.setattr(benchmarks, "ROWS", rows)
    json_file, svg_file = tmp_path / "figures.json", tmp_path / "figures.svg"
    command = ["benchmarks", "--quick", "--json", str(json_file), "--svg", str(svg_file), "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    assert benchmarks.main() == 1
    found = json.loads(json_file.read_text())
    assert [figure["what"] for figure in found["figures"]] == [
        "durable append, one caller",
        "that raw commit in a thread, awaited",
        "durable append, 64 callers",
    ]
    (broken,) = found["broken"]
    assert "row 0 (a_module_that_is_not_there) broke off" in broken
    assert broken in capfd.readouterr().out
    assert "raw commit, p50" in found["machine"]
    assert "durable append, 64 callers" in svg_file.read_text()


def test_a_figure_is_the_median_of_the_rounds_and_holds_up_to_its_limit() -> None:
    rounds = [([2.0, 4.0, 3.0], [1.0]), ([5.0], [1.0]), ([8.0], [2.0]), ([9.0], [1.0])]
    figure = ratio("1", "ours", "theirs", rounds, show=microseconds, at_most=4.5)
    assert (figure.value, figure.low, figure.high, figure.rounds) == (4.5, 4.0, 5.0, 4)
    assert figure.holds
    assert not ratio("1", "ours", "theirs", rounds, show=microseconds, at_most=4.4).holds
    assert not ratio("1", "ours", "theirs", rounds, show=microseconds, at_least=4.6).holds


def test_the_picture_ends_a_bar_left_of_the_limit_only_if_the_figure_holds() -> None:
    figures = [
        ratio("1", "good & fast", "theirs", [([1.0], [1.0])], show=microseconds, at_most=1.5),
        ratio("2", "too slow", "theirs", [([3.0], [1.0])], show=microseconds, at_most=1.5),
        ratio("3", "fast enough", "theirs", [([3.0], [1.0])], show=microseconds, at_least=2),
        ratio("4", "informs", "theirs", [([3.0], [1.0])], show=microseconds),
    ]
    drawn = ElementTree.fromstring(picture.draw({"processor": "<any>"}, figures))
    bars = [each.attrib for each in drawn.iter("{http://www.w3.org/2000/svg}rect") if "x" in each.attrib]
    ends = [int(bar["x"]) + int(bar["width"]) for bar in bars]
    assert [end < picture.LIMIT_AT for end in ends] == [True, False, True]
