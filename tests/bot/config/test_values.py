from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from bot.config.values import user_matches
from tests.bot.config.minimal import MINIMAL, insert, load, only_problem


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


@pytest.mark.parametrize("path", ["", "/", ".", "data/..", "a\\u0000b"])
def test_a_database_needs_the_name_of_a_file(tmp_path: Path, path: str) -> None:
    said = only_problem(tmp_path, insert(f'[store]\npath = "{path}"'))
    assert said.startswith("store.path = ")
    assert "names no file; allowed: a file's path" in said


@pytest.mark.parametrize("host", ["a..b", "a" * 70, "a b", "a\\u0000b"])
@pytest.mark.parametrize("section", ["ingest", "admin"])
def test_a_host_is_one_that_there_could_be(tmp_path: Path, section: str, host: str) -> None:
    said = only_problem(tmp_path, insert(f'[{section}]\nhost = "{host}"'))
    assert said.startswith(f"{section}.host = ")
    assert "is not a host; allowed: the address to listen on" in said


@pytest.mark.parametrize("host", ["bücher.example", "localhost.", "::1", "fe80::1%eth0"])
def test_a_host_may_be_a_name_of_any_script_or_an_address(tmp_path: Path, host: str) -> None:
    assert load(tmp_path, insert(f'[ingest]\nhost = "{host}"')).ingest.host == host


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://a..b", "names a host that nobody can have"),
        ("http://h/ä", "has characters in its path that must be percent-encoded"),
    ],
)
def test_a_url_that_no_request_can_be_sent_to_is_refused(tmp_path: Path, url: str, said: str) -> None:
    assert said in only_problem(tmp_path, MINIMAL.replace("http://127.0.0.1:8008/", url))
