"""`musher db`: what a person types, sees and gets."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bot import cli
from bot.db_cli import Bar, line
from crdt import PipelineEvent, Store
from tests.crdt.samples import alter

CONFIG = """
[store]
path = "musher.db"
segment_events = 5
"""
ROOM = "!room:example.org"
OF_SESSION = "SELECT doc_id FROM documents WHERE name LIKE 'session/%'"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a configuration and a small database."""
    (tmp_path / "config.toml").write_text(CONFIG)
    fill(tmp_path, one_turn)
    return tmp_path


def musher(folder: Path, *arguments: str, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MUSHER_")}
    environ["PYTHONPATH"] = str(Path(cli.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "bot", "db", *arguments],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=60,
        check=False,
    )


def fill(folder: Path, act: Callable[[Store], Awaitable[object]]) -> None:
    async def run() -> None:
        async with Store.open(folder / "musher.db", sled_id="build-1", segment_events=5) as store:
            await act(store)

    asyncio.run(run())


async def one_turn(store: Store) -> None:
    await store.append_events([PipelineEvent(str(number), "a", "b", "moved") for number in range(1, 9)])
    await store.complete_turn(await store.begin_turn(ROOM, "$first", "hello"), "hi")


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """The store, opened by another process for as long as the block lasts."""
    code = (
        "import asyncio, sys; from crdt import Store\n"
        "async def main():\n"
        "    async with Store.open('musher.db'):\n"
        "        print('open', flush=True); await asyncio.to_thread(sys.stdin.readline)\n"
        "asyncio.run(main())"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "open\n" in iter(process.stdout.readline, "")
        yield
        process.communicate("\n")


def test_a_backup_comes_back(folder: Path) -> None:
    with running(folder):
        done = musher(folder, "verify")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "musher.db is whole: 8 events of sled build-1, 1 sessions\n"
        done = musher(folder, "backup", "backup.db")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "backup.db is a whole backup of musher.db: 8 events of sled build-1, 1 sessions\n"
    fill(folder, lambda store: store.append_event(PipelineEvent("9", "a", "b", "moved")))
    done = musher(folder, "restore", "backup.db")
    assert (done.returncode, done.stderr) == (0, "")
    restored, kept = done.stdout.splitlines()
    assert restored == "musher.db is restored: 8 events of sled build-1, 1 sessions"
    assert kept.startswith("what it was before is kept as musher.db.replaced-20")
    done = musher(folder, "compact")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("musher.db is compact: 0.")
    assert musher(folder, "verify").stdout == "musher.db is whole: 8 events of sled build-1, 1 sessions\n"
    assert musher(folder, "verify", "backup.db").returncode == 0


def test_what_takes_the_database_away_is_refused_beside_the_service(folder: Path) -> None:
    assert musher(folder, "backup", "backup.db").returncode == 0
    with running(folder):
        for arguments in (("compact",), ("restore", "backup.db")):
            done = musher(folder, *arguments)
            assert (done.returncode, done.stdout) == (1, "")
            assert "musher.db is in use by another process" in done.stderr
            assert len(done.stderr.splitlines()) == 1


def test_each_problem_is_a_line_and_the_exit_code_is_1(folder: Path) -> None:
    alter(folder / "musher.db", "UPDATE snapshots SET packed_data = zeroblob(9)")
    alter(folder / "musher.db", f"DELETE FROM ops WHERE seq = 2 AND doc_id IN ({OF_SESSION})")
    done = musher(folder, "verify")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "the snapshot of document log/build-1/1 was altered",
        f"op 2 of document session/{ROOM}/1 is missing",
    ]
    assert done.stderr == "musher: musher.db is damaged; restore a backup with 'musher db restore FILE'\n"
    done = musher(folder, "backup", "backup.db")
    assert (done.returncode, done.stdout) == (1, "")
    assert not (folder / "backup.db").exists()


def test_a_backup_is_overwritten_only_by_force(folder: Path) -> None:
    assert musher(folder, "backup", "backup.db").returncode == 0
    done = musher(folder, "backup", "backup.db")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "musher: the file backup.db exists already: name another file, or overwrite it with --force\n"
    )
    assert musher(folder, "backup", "backup.db", "--force").returncode == 0


@pytest.mark.parametrize("arguments", [(), ("backup",), ("restore",), ("repair",), ("restore", ""), ("backup", "/")])
def test_wrong_arguments_end_with_2(folder: Path, arguments: tuple[str, ...]) -> None:
    assert musher(folder, *arguments).returncode == 2


def test_a_terminal_is_shown_how_far_it_is(folder: Path) -> None:
    ours, theirs = pty.openpty()
    done = musher(folder, "verify", stderr=theirs)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "checking pages …" in shown
    assert "100 %" in shown
    assert shown.endswith("\r\x1b[K")


def test_a_bar_says_what_and_how_much() -> None:
    assert line("copying", 1, 3) == "copying  [##########....................]  33 %"
    assert line("copying", 3, 3) == "copying  [##############################] 100 %"
    assert line("checking pages", 0, 0) == "checking pages …"


def test_a_bar_draws_new_work_and_ends_at_once_and_leaves_out_what_comes_too_soon() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    with Bar(terminal) as bar:
        for done in range(0, 10_001):
            bar.show("copying", done, 10_000)
        bar.show("reading", 0, 1)
    drawn = terminal.getvalue().split("\r\x1b[K")
    assert len(drawn) < 1000
    assert drawn[1] == line("copying", 0, 1)
    assert drawn[-3:] == [line("copying", 1, 1), line("reading", 0, 1), ""]
