from __future__ import annotations

from pathlib import Path

import pytest

from tests.bot.config.minimal import MINIMAL, load, only_problem, problems


def test_the_environment_goes_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    environ = {
        "MUSHER_MATRIX__PASSWORD": "other",
        "MUSHER_MATRIX__ALLOWED_USERS": "@*:a.org, @bob:b.org",
        "MUSHER_MATRIX__ADMINS": '["@bob:b.org"]',
        "MUSHER_LLM": '{"context_tokens": 4096, "check_model": false}',
        "MUSHER_LLM__CONTEXT_TOKENS": "2048",
        "MUSHER_LLM__API_KEY_FILE": str(tmp_path / "key"),
        "MUSHER_PERSONAS__TERSE__INSTRUCTIONS": "Be brief.",
        "MUSHER_ROOMS": '{"!AbC": {"persona": "terse"}}',
        "MUSHER_INGEST__SOURCES": '[{"name": "gh", "kind": "github", "secrets": ["s"]}]',
        "MUSHER_LOG__LEVEL": "",
        "MUSHER_PAUSE_AT": "begin",
        "MUSHER_DEMO_ROOM": "x",
        "MUSHER_PORT": "tcp://10.0.0.7:8080",
        "MUSHER_PORT_8080_TCP": "tcp://10.0.0.7:8080",
        "MUSHER_PORT_8080_TCP_ADDR": "10.0.0.7",
        "MUSHER_SERVICE_HOST": "10.0.0.7",
        "MUSHER_SERVICE_PORT_HTTP": "8080",
        "MUSHER_ADMIN_SERVICE_PORT": "9090",
        "HOME": "/nowhere",
    }
    config = load(tmp_path, MINIMAL, environ)
    assert config.matrix.password is not None
    assert config.matrix.password.get_secret_value() == "other"
    assert config.matrix.allowed_users == ("@*:a.org", "@bob:b.org")
    assert config.matrix.admins == ("@bob:b.org",)
    assert (config.llm.context_tokens, config.llm.check_model) == (2048, False)
    assert config.llm.api_key is not None
    assert config.llm.api_key.get_secret_value() == "from-file"
    assert config.rooms["!AbC"].persona == "terse"
    assert config.ingest.sources[0].kind == "github"
    assert config.log.level == "info"


def test_a_room_id_in_the_name_of_a_variable_keeps_its_case(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL, {"MUSHER_ROOMS__!AbC:x__FILTER": "to_stage == 'done'"})
    assert config.rooms["!AbC:x"].filter == "to_stage == 'done'"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MUSHER_MATRIX__HOMSERVER", "x", "unknown key; did you mean homeserver?"),
        ("MUSHER_MODEL", "x", "unknown key; allowed: matrix, store"),
        ("MUSHER_PORT", "8080", "unknown key"),
        ("MUSHER_LLM__MODEL__NAME", "x", "does not end in a key"),
        ("MUSHER_INGEST__SOURCES__NAME", "x", "does not end in a key"),
        ("MUSHER_INGEST__TOKENS", "[hunter2", "is not JSON; allowed: a list of bearer tokens"),
        ("MUSHER_LLM", "hunter2", "is not JSON"),
        ("MUSHER_ROOMS", "[" * 100_000, "is nested too deep; allowed: tables"),
    ],
)
def test_a_variable_that_means_nothing_is_refused_by_name(tmp_path: Path, name: str, value: str, said: str) -> None:
    assert only_problem(tmp_path, MINIMAL, {name: value}).startswith(f"{name}: {said}")


@pytest.mark.parametrize(
    ("table", "value", "key"),
    [
        ("MUSHER_PERSONAS", "[]", "MUSHER_PERSONAS__DEFAULT__INSTRUCTIONS"),
        ("MUSHER_MATRIX", "5", "MUSHER_MATRIX__PASSWORD"),
    ],
)
def test_a_key_of_what_another_variable_makes_no_table_is_refused(
    tmp_path: Path, table: str, value: str, key: str
) -> None:
    told = problems(tmp_path, MINIMAL, {table: value, key: "x"})
    assert [problem.partition(",")[0] for problem in told[:1]] == [f"{key}: is a key of {table[7:].lower()}"]
    assert f"(from {table})" in told[1]


def test_a_file_in_the_home_of_nobody_is_named(tmp_path: Path) -> None:
    told = only_problem(tmp_path, MINIMAL, {"MUSHER_LLM__API_KEY_FILE": "~nobody-at-all/key"})
    assert told.startswith('llm.api_key_file = "~nobody-at-all/key": can\'t be read (')


def test_a_wrong_value_from_the_environment_names_key_and_variable(tmp_path: Path) -> None:
    told = only_problem(tmp_path, MINIMAL, {"MUSHER_LLM__TIMEOUT": "soon"})
    assert told.startswith('llm.timeout (from MUSHER_LLM__TIMEOUT) = "soon": is not a duration; allowed: ')
