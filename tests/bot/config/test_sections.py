from __future__ import annotations

from pathlib import Path

import pytest

from tests.bot.config.minimal import MATRIX, MINIMAL, insert, load, only_problem, problems

SIGN_IN = "password = 'hunter2'"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "matrix.password: is missing, and so is access_token; allowed: either password, or access_token with"),
        ("access_token = 'hunter2'", "matrix.access_token = (hidden): is given without device_id"),
        (f"{SIGN_IN}\ndevice_id = 'X'", "matrix.password = (hidden): is given together with device_id"),
        (f"{SIGN_IN}\naccess_token = 'hunter2'\ndevice_id = 'X'", "is given together with access_token"),
        ("password = ' '", "matrix.password = (hidden): is empty"),
    ],
)
def test_there_is_exactly_one_way_to_sign_in(tmp_path: Path, lines: str, said: str) -> None:
    assert said in only_problem(tmp_path, MINIMAL.replace('password = "hunter2"', lines))


def test_an_access_token_with_its_device_is_enough(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL.replace('password = "hunter2"', "access_token = 't'\ndevice_id = 'D'"))
    assert (config.matrix.device_id, config.matrix.password) == ("D", None)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", ["llm.base_url: is missing, and the provider", "llm.model: is missing, and the provider"]),
        ("base_url = 'http://h/v1?key=hunter2'\nmodel = 'm'", ['llm.base_url = "http://h/v1?(hidden)": has more than']),
        (
            "base_url = 'http://h/v1'\nmodel = 'm'\nmax_reply_tokens = 8192",
            ["llm.max_reply_tokens = 8192: leaves nothing"],
        ),
        (
            "base_url = 'http://h/v1'\nmodel = 'm'\ncontext_tokens = 1024",
            ["llm.max_reply_tokens = 1024: leaves nothing"],
        ),
        (
            "provider = 'anthropic'\ntemperature = 0.7",
            [
                'llm.model: is missing, and the provider "anthropic"',
                'llm.api_key: is missing, and the provider "anthropic"',
                'llm.temperature = 0.7: is given, and the provider "anthropic" takes none',
            ],
        ),
        ("base_url = 'http://h/v1'\nmodel = 'm'\ntimeout = '0s'", ['llm.timeout = "0s": is zero']),
        ("base_url = 'http://h/v1'\nmodel = 'm'\ntemperature = nan", ["llm.temperature = NaN"]),
    ],
)
def test_a_model_needs_its_server_its_name_and_room_for_a_conversation(
    tmp_path: Path, lines: str, said: list[str]
) -> None:
    told = problems(tmp_path, f"{MATRIX}[llm]\n{lines}\n")
    assert len(told) == len(said)
    assert all(problem.startswith(start) for problem, start in zip(told, said, strict=True))


def test_admins_are_among_the_allowed_users(tmp_path: Path) -> None:
    text = insert("[matrix]\nadmins = ['@alice:example.org', '@eve:evil.org']")
    assert 'matrix.admins[1] = "@eve:evil.org": is not among allowed_users' in only_problem(tmp_path, text)


def source(kind: str, secrets: str, name: str = "hook", rule: str = "") -> str:
    return f'[[ingest.sources]]\nname = "{name}"\nkind = "{kind}"\nsecrets = {secrets}\n{rule}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (source("gitlab", '["whsec_aGk=", "hunter2"]'), "ingest.sources[0].secrets = (hidden): mixes signing tokens"),
        (source("github", '["whsec_hunter2!"]'), "ingest.sources[0].secrets[0] = (hidden): starts with whsec_"),
        (source("github", "[]"), "ingest.sources[0].secrets = (hidden): is empty"),
        (source("svn", '["s"]'), 'ingest.sources[0].kind = "svn": is none of the known words; allowed: github'),
        (source("jira", '["s"]', name="a/b"), 'ingest.sources[0].name = "a/b": does not have the right form'),
        (source("jira", '["s"]') + source("jira", '["s"]'), 'sources[1].name: "hook" is the name of another source'),
        (
            source("jira", '["s"]', rule='[[ingest.sources.rules]]\nstory_id = "\'1\'"\npipeline_event = "f("\n'),
            "ingest.sources[0].rules[0].pipeline_event",
        ),
    ],
)
def test_a_source_that_could_not_work_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in only_problem(tmp_path, MINIMAL + text)


def test_gitlab_secrets_of_one_kind_are_fine(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL + source("gitlab", '["whsec_aGk=", "whsec_aG8="]') + source("bearer", '["s"]', "b"))
    assert [each.name for each in config.ingest.sources] == ["hook", "b"]


def test_anthropic_needs_no_address(tmp_path: Path) -> None:
    lines = "[llm]\nprovider = 'anthropic'\nmodel = 'claude-haiku-5-5'\napi_key = 'sk-1'\n"
    assert load(tmp_path, f"{MATRIX}{lines}").llm.base_url is None


def on_one_port(ingest: str, admin: str) -> str:
    return f"{MINIMAL}[ingest]\nhost = '{ingest}'\nport = 80\n[admin]\nhost = '{admin}'\nport = 80\n"


@pytest.mark.parametrize(
    ("ingest", "admin"), [("0.0.0.0", "127.0.0.1"), ("localhost", "127.0.0.1"), ("::1", "::"), ("0.0.0.0", "localhost")]
)
def test_listeners_on_one_port_share_no_address(tmp_path: Path, ingest: str, admin: str) -> None:
    assert only_problem(tmp_path, on_one_port(ingest, admin)).startswith("admin.port: 80 is ingest.port as well")


@pytest.mark.parametrize(("ingest", "admin"), [("127.0.0.2", "127.0.0.1"), ("0.0.0.0", "::1"), ("0.0.0.0", "::")])
def test_listeners_on_addresses_of_their_own_may_have_one_port(tmp_path: Path, ingest: str, admin: str) -> None:
    assert load(tmp_path, on_one_port(ingest, admin)).admin.port == 80
