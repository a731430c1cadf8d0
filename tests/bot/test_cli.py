from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from bot import cli
from bot.errors import MusherError
from crdt import CrdtError, PipelineEvent, Store

CONFIG = """
[matrix]
homeserver = "http://127.0.0.1:8008"
user_id = "@musher:example.org"
password = "hunter2"
allowed_users = ["@*:example.org"]
[store]
path = "musher.db"
[llm]
provider = "digest"
"""
ROOM = "!room:example.org"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path


def musher(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MUSHER_")}
    command = [sys.executable, "-m", "bot", *arguments]
    environ["PYTHONPATH"] = str(Path(cli.__file__).parents[1])
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)


def fill(folder: Path, act: Callable[[Store], Awaitable[object]]) -> None:
    async def run() -> None:
        async with Store.open(folder / "musher.db", sled_id="build-1") as store:
            await act(store)

    asyncio.run(run())


async def one_turn(store: Store) -> None:
    await store.append_event(PipelineEvent("42", "2_current", "3_qa", "GatesStarted"))
    await store.append_event(PipelineEvent("7", "", "done", "merged — ok"))
    turn = await store.begin_turn(ROOM, "$first", "<@bob:example.org>: what happened?\nSay \x1b[31mall.")
    await store.complete_turn(turn, "Two things.")


def test_help_names_the_commands(tmp_path: Path) -> None:
    done = musher(tmp_path, "--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("run", "demo", "check", "events", "sessions"))


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys, bot.cli; print({'pydantic', 'structlog', 'pycrdt', 'nio', 'crdt'} & sys.modules.keys())"
    environ = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, check=True)
    assert done.stdout.strip() == b"set()"


def test_the_version_is_printed(tmp_path: Path) -> None:
    done = musher(tmp_path, "--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "musher")


@pytest.mark.parametrize("arguments", [(), ("fly",), ("check", "--fast")])
def test_wrong_arguments_end_with_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = musher(tmp_path, *arguments)
    assert done.returncode == 2
    assert "usage: musher" in done.stderr


def test_check_accepts_a_valid_configuration(folder: Path) -> None:
    done = musher(folder, "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "the configuration is valid: @musher:example.org at http://127.0.0.1:8008, no model\n"


def test_check_tells_all_problems_and_no_secret(folder: Path) -> None:
    (folder / "bad.toml").write_text(CONFIG.replace("@musher:", "musher:").replace("digest", "magic") + "[nope]\n")
    done = musher(folder, "check", "--config", "bad.toml")
    assert (done.returncode, done.stdout) == (2, "")
    first, *others = done.stderr.splitlines()
    assert first == "musher: bad.toml has 3 problems:"
    assert [line.split()[0] for line in others] == ["matrix.user_id", "llm.provider", "nope:"]
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("command", ["check", "run", "events", "sessions"])
def test_without_a_configuration_each_command_says_what_to_copy(tmp_path: Path, command: str) -> None:
    done = musher(tmp_path, command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "musher: config.toml: no such file; copy config.example.toml to config.toml and fill it in\n"


def test_events_are_one_object_a_line(folder: Path) -> None:
    fill(folder, one_turn)
    done = musher(folder, "events", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first.pop("recorded_at").startswith("20")
    assert first == {
        "sled_id": "build-1",
        "event_seq": 1,
        "story_id": "42",
        "from_stage": "2_current",
        "to_stage": "3_qa",
        "pipeline_event": "GatesStarted",
    }
    assert (second["event_seq"], second["pipeline_event"]) == (2, "merged — ok")


def test_events_are_an_aligned_table(folder: Path) -> None:
    fill(folder, one_turn)
    heading, first, second = musher(folder, "events").stdout.splitlines()
    column = heading.index("pipeline_event")
    assert (first[column:].split()[0], second[column:].split()[0]) == ("GatesStarted", "merged")
    assert column == first.index("GatesStarted") == second.index("merged")


def test_sessions_are_one_object_a_line(folder: Path) -> None:
    fill(folder, one_turn)
    (line,) = musher(folder, "sessions", "--json").stdout.splitlines()
    expected = {
        "session_id": ROOM,
        "persona_name": "",
        "scope": "single-sled",
        "high_water": {"build-1": 2},
        "turns": 1,
    }
    assert json.loads(line) == expected
    (line,) = musher(folder, "sessions", ROOM, "--json").stdout.splitlines()
    found = json.loads(line)
    transcript = found.pop("transcript")
    assert found == expected
    assert [(entry["role"], len(entry["lines"])) for entry in transcript] == [("user", 2), ("assistant", 0)]


def test_a_session_is_shown_with_its_transcript_and_steers_no_terminal(folder: Path) -> None:
    fill(folder, one_turn)
    done = musher(folder, "sessions", ROOM)
    assert done.returncode == 0
    assert '{"build-1":2}' in done.stdout
    assert 'pipeline_event story_id="42"' in done.stdout
    assert "  Say \\x1b[31mall.\n" in done.stdout
    assert "assistant" in done.stdout


def test_commands_read_beside_the_running_owner(folder: Path) -> None:
    async def run() -> str:
        async with Store.open(folder / "musher.db", sled_id="build-1") as store:
            await one_turn(store)
            done = await asyncio.to_thread(musher, folder, "events", "--json")
            return done.stdout

    assert len(asyncio.run(run()).splitlines()) == 2


def test_an_unknown_room_and_a_missing_database_are_told_in_one_line(folder: Path) -> None:
    missing = musher(folder, "sessions")
    assert (missing.returncode, len(missing.stderr.splitlines())) == (1, 1)
    assert missing.stderr.startswith("musher: the database musher.db ")
    fill(folder, one_turn)
    unknown = musher(folder, "sessions", "!other:x")
    assert (unknown.returncode, len(unknown.stderr.splitlines())) == (1, 1)
    assert unknown.stderr.startswith("musher: no session of room !other:x in musher.db: 'musher sessions' lists")


def test_a_reader_that_goes_away_is_no_failure(folder: Path) -> None:
    fill(folder, lambda store: store.append_events([PipelineEvent(str(n), "a", "b", "moved") for n in range(5000)]))
    read_end, write_end = os.pipe()
    os.close(read_end)
    environ = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    with os.fdopen(write_end, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "bot", "events"],
            cwd=folder,
            env=environ,
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, "")


def failing_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def act(arguments: Any) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", act)
    structlog.configure()  # so that the command leaves the set-up of this process alone
    try:
        return cli.main(["run"])
    finally:
        structlog.reset_defaults()


class _Refused(MusherError):
    pass


NESTED = ExceptionGroup("tasks", [_Refused("a"), ExceptionGroup("more", [_Refused("a"), _Refused("b")])])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (_Refused("the homeserver refused the password"), 1, "musher: the homeserver refused the password\n"),
        (CrdtError("the database x is odd"), 1, "musher: the database x is odd\n"),
        (PermissionError(13, "Permission denied", "data"), 1, "musher: data: Permission denied\n"),
        (OSError("no route"), 1, "musher: no route\n"),
        (
            ExceptionGroup("tasks", [_Refused("a"), ExceptionGroup("", [_Refused("a"), _Refused("b")])]),
            1,
            "musher: a\nmusher: b\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_a_foreseen_failure_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    assert failing_with(monkeypatch, error) == code
    assert capsys.readouterr().err == said


def test_an_unforeseen_failure_is_one_line_and_its_trace_a_log_entry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ZeroDivisionError("x")
    with structlog.testing.capture_logs() as logs:
        assert failing_with(monkeypatch, error) == 1
    assert "nobody foresaw, ZeroDivisionError" in capsys.readouterr().err
    assert [(entry["event"], entry["log_level"], entry["exc_info"]) for entry in logs] == [
        ("unforeseen_error", "error", error)
    ]
