"""Commands whose streams are closed, broken, or can't show what they print."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bot import cli
from crdt import PipelineEvent, Store
from tests.bot.config.minimal import MINIMAL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a configuration and a database of a sled whose name is not ASCII."""
    hook = '[[ingest.sources]]\nname = "hook"\nkind = "bearer"\nsecrets = ["s"]\n'
    (tmp_path / "config.toml").write_text(f'{MINIMAL}[store]\npath = "musher.db"\n{hook}')

    async def fill() -> None:
        async with Store.open(tmp_path / "musher.db", sled_id="hündin") as store:
            await store.append_event(PipelineEvent("42", "a", "b", "moved"))

    asyncio.run(fill())
    return tmp_path


def shell(folder: Path, line: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell in which $musher is the command; what a pipe's first part gave is its exit code."""
    command = {"musher": f"{sys.executable} -m bot", "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MUSHER_")}
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**kept, **command, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_what_a_terminal_can_not_show_does_not_fail_a_restore_that_is_done(folder: Path) -> None:
    done = shell(folder, "$musher db backup b.db && $musher db restore b.db", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 events of sled h\\xfcndin" in done.stdout


def test_each_command_ends_quietly_when_its_reader_has_gone(folder: Path) -> None:
    done = shell(folder, 'exec 3> >(true); wait $!; $musher db verify >&3; echo "ended with $?"')
    assert (done.stdout, done.stderr) == ("ended with 141\n", "")


@pytest.mark.parametrize("command", ["check", "events", "sessions", "db verify"])
def test_a_closed_output_is_no_failure(folder: Path, command: str) -> None:
    done = shell(folder, f"$musher {command} >&-")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_standard_error_takes_nothing_from_the_output(folder: Path) -> None:
    done = shell(folder, "$musher db verify 2>&-")
    assert (done.returncode, done.stdout) == (0, "musher.db is whole: 1 events of sled hündin, 0 sessions\n")


def test_a_closed_input_is_a_wrong_argument(folder: Path) -> None:
    done = shell(folder, "$musher ingest test - --source hook <&-")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "musher: FILE -: standard input is closed; name a file, or pipe the body in\n"
