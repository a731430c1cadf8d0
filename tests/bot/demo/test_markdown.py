"""Markdown on a terminal: readable at every width, and without power over the terminal."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from bot.demo.markdown import read_markdown, to_ansi

PIECES = (
    *(
        "# ",
        "> ",
        "- ",
        "1. ",
        "```py\n",
        "```",
        "\n",
        "\n\n",
        "    ",
        "---\n",
        "| a | b |\n|---|---|\n| 1 | 2 |\n",
        "|",
    ),
    *("*", "**", "_", "`", "~~", "[x](y)", "![a](b)", "[", "](", "<http://a.b>", "<b>", "\\", "&#x202e;", "&#12;"),
    *(
        "\x1b[2J",
        "\x9b2J",
        "\x07",
        "\u202e",
        "日本",
        "👩\u200d💻",
        "שלום ",
        "word ",
        "w" * 60,
        "99999999999999999999. ",
    ),
)


@pytest.fixture(autouse=True)
def _colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def shown(markdown: str, columns: int = 80) -> str:
    """What a person reads, without the styles."""
    return Text.from_ansi(to_ansi(read_markdown(markdown), columns)).plain.strip("\n")


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join), st.sampled_from([1, 40, 80, 160]))
def test_nothing_but_styles_reaches_the_terminal(markdown: str, columns: int) -> None:
    printed = re.sub(r"\x1b\[[\d;]*m", "", to_ansi(read_markdown(markdown), columns))
    assert not [character for character in printed if unicodedata.category(character) == "Cc" and character != "\n"]
    assert not set(printed) & set("\u202a\u202b\u202d\u202e\u2066\u2067")


def test_structure_becomes_style() -> None:
    printed = to_ansi(read_markdown("# Head\n**bold** and `code`\nnext line\n\n- one\n- two"), 80)
    assert "\x1b[1;4mHead\x1b[0m" in printed
    assert "\x1b[1mbold\x1b[0m and \x1b[36mcode\x1b[0m\nnext line\n" in printed
    assert " • \x1b[0mone\n" in printed


def test_without_colours_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    printed = to_ansi(read_markdown("**bold** `code`\n\n```python\nx = 1\n```"), 80)
    assert set(re.findall(r"\x1b\[([\d;]*)m", printed)) <= {"0", "1", "2", "3", "4", "9"}


def test_html_and_targets_are_shown_as_they_are_written() -> None:
    text = shown("<b>x</b> [docs](https://a.example/) <https://b.example> ![dog](mxc://c)")
    assert text == "<b>x</b> docs (https://a.example/) https://b.example dog (mxc://c)"


def test_a_table_wraps_its_cells_and_one_with_too_many_columns_becomes_a_list() -> None:
    narrow = shown("| Story | What |\n|---|---|\n| 42 | " + "word " * 30 + "|", 40)
    assert max(len(line) for line in narrow.splitlines()) < 40
    assert narrow.count("word") == 30
    names = [f"column{number}" for number in range(20)]
    cells = [f"value{number}" for number in range(20)]
    wide = shown(f"| {' | '.join(names)} |\n|{'---|' * 20}\n| {' | '.join(cells)} |", 80)
    assert wide.splitlines() == [f"{name}: {cell}" for name, cell in zip(names, cells, strict=True)]


def test_what_is_nested_too_deeply_is_shown_as_it_is_written() -> None:
    text = "> " * 40 + "deep"
    assert shown(text, 160) == text


def test_lines_end_without_blanks_and_before_the_last_column() -> None:
    printed = to_ansi(read_markdown("- " + "word " * 100 + "\n\n```\ncode\n```\n\n| a | b |\n|---|---|\n| 1 | |"), 60)
    lines = Text.from_ansi(printed).plain.splitlines()
    assert all(line == line.rstrip() and len(line) < 60 for line in lines)
