from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import structlog

from bot import cli, ingest_cli
from bot.health import Health
from bot.ingest import IngestServer
from bot.ingest.body import MAX_BODY_BYTES
from crdt import Store

CONFIG = """
[matrix]
homeserver = "http://127.0.0.1:8008"
user_id = "@musher:example.org"
password = "hunter2"
allowed_users = ["@*:example.org"]
[llm]
provider = "digest"
[[ingest.sources]]
name = "gh"
kind = "github"
secrets = ["private"]
[[ingest.sources]]
name = "mine"
kind = "bearer"
secrets = ["private"]
[[ingest.sources.rules]]
when = "event == 'never'"
story_id = "body.id"
pipeline_event = "'x'"
[[ingest.sources.rules]]
when = "headers.\\"x-kind\\" == 'build'"
story_id = "to_string(body.id)"
to_stage = "body.result"
pipeline_event = "'built'"
"""
PULL = {
    "action": "opened",
    "pull_request": {"number": 2, "title": "Add <b> & \n more"},
    "repository": {"full_name": "octo/hello"},
}


@pytest.fixture(autouse=True)
def _quiet_logging() -> Iterator[None]:
    structlog.configure(processors=[_drop])  # also leaves the set-up of this process alone
    yield
    structlog.reset_defaults()


def _drop(_logger: object, _name: str, _line: MutableMapping[str, Any]) -> str:
    raise structlog.DropEvent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("MUSHER_")]:
        monkeypatch.delenv(name)
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "pull.json").write_text(json.dumps(PULL))
    (tmp_path / "build.json").write_text('{"id": 7, "result": "green"}')
    (tmp_path / "big.json").write_bytes(b" " * (MAX_BODY_BYTES + 1))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (
            ["pull.json", "--source", "gh", "--header", "X-GitHub-Event: pull_request"],
            0,
            [
                "matched by the preset of github:",
                '  pipeline_event story_id="octo/hello#2" from="" to="open" '
                'event="pull_request opened: Add \\u003cb> & more"',
            ],
        ),
        (
            ["pull.json", "--source", "gh", "--header", "X-GitHub-Event:star"],
            0,
            ["ignored by the preset of github: the preset has nothing for star"],
        ),
        (
            ["build.json", "--source", "mine", "--header", "X-Kind: build"],
            0,
            ["matched by rule 2:", '  pipeline_event story_id="7" from="" to="green" event="built"'],
        ),
        (["build.json", "--source", "mine"], 0, ["ignored by the rules: none of 2 rules matches"]),
        (["config.toml", "--source", "gh"], 1, ["refused with 400 malformed: the body is not JSON"]),
        (["big.json", "--source", "gh"], 1, ["refused with 413 too_large: the body is larger than 1048576 bytes"]),
        (["/dev/zero", "--source", "gh"], 1, ["refused with 413 too_large: the body is larger than 1048576 bytes"]),
        (
            ["pull.json", "--source", "gh"],
            0,
            ["a sender that names the event in a header needs that header, like --header"],
        ),
        (["build.json", "--source", "nope"], 2, ["--source nope: the configuration has no such source"]),
        (["build.json", "--source", "gh", "--header", "nonsense"], 2, ["it must be like 'X-GitHub-Event: issues'"]),
        (["absent.json", "--source", "gh"], 1, ["absent.json: No such file or directory"]),
    ],
)
def test_a_dry_run_tells_what_a_delivery_becomes_and_why(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: list[str]
) -> None:
    assert cli.main(["ingest", "test", *arguments]) == code
    captured = capsys.readouterr()
    for line in says:
        assert line in captured.out + captured.err
    assert "private" not in captured.out + captured.err


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store.open(tmp_path / "musher.db") as opened:
        yield opened


def event(*arguments: str) -> Callable[[], int]:
    return lambda: cli.main(
        ["event", "--story", "42", "--from", "2_current", "--to", "3_qa", "--event", "GatesStarted", *arguments]
    )


@pytest.mark.usefixtures("folder")
async def test_an_event_from_a_shell_is_in_the_log_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with IngestServer(store.append_batches, ["right"], "127.0.0.1", 0, Health()) as server:
        monkeypatch.setenv("MUSHER_URL", f"http://127.0.0.1:{server.port}/v1/events")
        monkeypatch.setenv("MUSHER_TOKEN", "right")
        assert await asyncio.to_thread(event("--id", "run-7")) == 0
        assert capsys.readouterr().out == "event 1 is in the log\n"
        assert await asyncio.to_thread(event("--id", "run-7")) == 0
        assert capsys.readouterr().out == "an event with this id is in the log already\n"
        assert await asyncio.to_thread(event()) == 0
        assert await asyncio.to_thread(event("--id", "", "--url", f"http://127.0.0.1:{server.port}/")) == 1
        assert "answered 422: id must have 1 to 200 characters" in capsys.readouterr().err
        assert await asyncio.to_thread(event("--token", "wrong")) == 1
        assert "answered 401: this needs the header" in capsys.readouterr().err
        assert await asyncio.to_thread(event("--event", "two\nlines")) == 1
        assert "answered 422: pipeline_event holds U+000A" in capsys.readouterr().err
    stored = [(e.story_id, e.from_stage, e.to_stage, e.pipeline_event) for e in await store.read_events()]
    assert stored == [("42", "2_current", "3_qa", "GatesStarted")] * 2


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "set MUSHER_URL"),
        (["--url", "127.0.0.1:8080"], "is not an http or https URL: it must be like http://127.0.0.1:8080"),
        (["--url", "http://"], "is not an http or https URL"),
        (["--url", "http://[::1"], "is not a URL (Invalid IPv6 URL)"),
        (["--url", "http://a..b"], "names a host that nobody can have"),
        (["--url", "http://127.0.0.1:9/ä"], "has characters in its path that must be percent-encoded"),
        (["--url", "http://127.0.0.1:99999"], "is not a URL (Port out of range"),
        (["--url", "http://me:hunter2@127.0.0.1"], "has more than a scheme, a host, a port and a path"),
        (["--url", "http://127.0.0.1:1"], "set MUSHER_TOKEN"),
        (["--url", "http://127.0.0.1:1", "--token", "a\nb"], "no HTTP header can carry"),
    ],
)
def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert event(*arguments)() == 2
    said = capsys.readouterr().err
    assert says in said
    assert "hunter2" not in said


@pytest.mark.usefixtures("folder")
def test_a_service_that_is_away_is_tried_again_and_then_given_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setattr(ingest_cli, "_WAIT_S", 0.001)
    assert event("--url", f"http://127.0.0.1:{port}", "--token", "t")() == 1
    said = capsys.readouterr().err
    assert said.count("trying again") == ingest_cli.ATTEMPTS - 1
    assert "can't be reached" in said
    assert "given up after 5 attempts" in said


@pytest.mark.usefixtures("folder")
def test_the_variables_of_a_shell_are_no_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUSHER_URL", "http://127.0.0.1:8080")
    monkeypatch.setenv("MUSHER_TOKEN", "private")
    assert cli.main(["check"]) == 0
    assert "private" not in capsys.readouterr().out
