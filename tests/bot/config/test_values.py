from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from bot.config.values import user_matches
from tests.bot.config.minimal import insert, load, only_problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30s", timedelta(seconds=30)),
        ("90m", timedelta(minutes=90)),
        ("7d", timedelta(days=7)),
        ("1h30m", timedelta(minutes=90)),
        ("1.5h", timedelta(minutes=90)),
        ("0s", timedelta()),
    ],
)
def test_a_duration_is_a_number_and_a_unit(tmp_path: Path, text: str, expected: timedelta) -> None:
    config = load(tmp_path, insert(f"[matrix]\nanswer_backlog = '{text}'"))
    assert config.matrix.answer_backlog == expected


@pytest.mark.parametrize("text", ["", "24", "-1h", "1 h", "1w", "h", "99999999999d"])
def test_a_duration_without_a_sensible_unit_is_refused(tmp_path: Path, text: str) -> None:
    assert "matrix.answer_backlog" in only_problem(tmp_path, insert(f"[matrix]\nanswer_backlog = '{text}'"))


@pytest.mark.parametrize(
    ("pattern", "user", "expected"),
    [
        ("@*:example.org", "@bob:example.org", True),
        ("@*:example.org", "@bob:evil.org", False),
        ("@*:example.org", "@bob:example.org:8448", False),
        ("@*:example.org", "@x:evil.org:example.org", False),
        ("@*:exampleXorg", "@bob:example.org", False),
        ("@dev-?:*.org", "@dev-1:a.b.org", True),
        ("@*:[::1]", "@bob:[::1]", True),
    ],
)
def test_a_pattern_of_users_stops_at_the_colon(pattern: str, user: str, expected: bool) -> None:
    assert user_matches(pattern, user) is expected
