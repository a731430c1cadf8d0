"""Commands that a signal ends in the midst of their work, or before it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bot import cli
from crdt import PipelineEvent, Store, back_up_database

WITH_A_SIGNAL = """
import signal, sys
from bot import __main__
from crdt import schema
from crdt.care import backup

def before(act):
    def ended(*given):
        signal.raise_signal(signal.{signal})
        return act(*given)
    return ended

schema.checksum = before(schema.checksum)
backup.examine = before(backup.examine)
sys.exit(__main__.main())
"""
"""A process that gets a signal while SQLite has it compute a row's checksum, or when it looks at its backup."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a configuration, a small database and its backup."""
    (tmp_path / "config.toml").write_text('[store]\npath = "musher.db"\n')

    async def fill() -> None:
        async with Store.open(tmp_path / "musher.db", sled_id="build-1") as store:
            await store.append_event(PipelineEvent("42", "a", "b", "moved"))
            await store.begin_turn("!room:example.org", "$first", "hello")

    asyncio.run(fill())
    back_up_database(tmp_path / "musher.db", tmp_path / "backup.db")
    return tmp_path


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MUSHER_")}
    environ["PYTHONPATH"] = str(Path(cli.__file__).parents[1])
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environ, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("arguments", [("restore", "backup.db"), ("backup", "new.db")])
def test_a_signal_leaves_nothing_behind_and_is_not_told_as_damage(
    folder: Path, arguments: tuple[str, ...], name: str, code: int
) -> None:
    before = {file.name for file in folder.iterdir()}
    with started(folder, "-c", WITH_A_SIGNAL.format(signal=name), "db", *arguments) as process:
        said = process.communicate(timeout=60)
    assert (process.returncode, *said) == (code, "", "")
    assert {file.name for file in folder.iterdir()} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("command", "ends_with"), [("run", 0), ("check", 128)])
def test_a_signal_ends_what_has_hardly_begun(folder: Path, command: str, ends_with: int, number: int) -> None:
    (folder / "config.toml").unlink()
    os.mkfifo(folder / "config.toml")
    # Whoever opens a FIFO waits for the other side: once it is open here, the process reads its configuration.
    with started(folder, "-m", "bot", command) as process, (folder / "config.toml").open("w"):
        process.send_signal(number)
        said = process.communicate(timeout=60)
    assert (process.returncode, *said) == (ends_with and ends_with + number, "", "")
