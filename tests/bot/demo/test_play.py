"""`musher demo` as people and scripts start it: real processes, a real Synapse, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bot.demo.pipeline import OPENING
from tests.servers.model import Reply, ScriptedModel, Status

REPOSITORY = Path(__file__).parents[3]
PATIENCE = 60.0
INTRODUCED = "/quit or Ctrl-C ends everything"


class Demo:
    """A running `musher demo`, and every process below it that was seen."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.shown: list[str] = []
        self._children: list[int] = []

    async def read_until(self, stream: asyncio.StreamReader | None, pattern: str) -> str:
        """Read lines until one holds `pattern`; remembers the processes that run then."""
        assert stream is not None
        async with asyncio.timeout(PATIENCE):
            while line := (await stream.readline()).decode():
                self.shown.append(line)
                if re.search(pattern, line):
                    self._children += [os.pidfd_open(child) for child in children_of(self.process.pid)]
                    return line
        raise AssertionError(f"no line holds {pattern!r}: {''.join(self.shown)}")

    def type(self, text: str, last: bool = False) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        if last:
            self.process.stdin.close()

    async def end(self) -> tuple[int, str, str]:
        """Wait for the end; returns the exit code and the rest of standard output and error."""
        async with asyncio.timeout(PATIENCE):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()

    async def assert_nothing_is_left(self) -> None:
        assert self._children
        for child in self._children:
            await ended(child)
        self._children.clear()


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


async def ended(process: int) -> None:
    """Wait until a process, given by its pidfd, has ended."""
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(process, over.set)
    try:
        async with asyncio.timeout(30):
            await over.wait()
    finally:
        asyncio.get_running_loop().remove_reader(process)
        os.close(process)


@asynccontextmanager
async def demo(folder: Path, *arguments: str, **environment: str) -> AsyncIterator[Demo]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bot", "demo", *arguments),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(folder), **environment},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Demo(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_script_gets_the_replies_alone_each_with_its_own_news(tmp_path: Path) -> None:
    async with demo(tmp_path, "--say", "what happened?", "--say", "and now?") as running:
        await running.read_until(running.process.stderr, "you: what happened")
        code, out, err = await running.end()
        assert (code, "Traceback" in err) == (0, False)
        first, second = out.split("\nSince we last spoke, ")
        assert first.startswith(
            f"So far, {len(OPENING)} things happened:\n\n- **Story 39** went from 4_review to 5_done"
        )
        assert "went from 3_qa to 2_current (GatesFailed)" in first
        assert second.startswith("3 things happened:\n")
        assert "**Story 39**" not in second
        await running.assert_nothing_is_left()
    assert os.listdir(tmp_path) == []


async def test_a_model_is_given_the_events_and_its_refusal_is_a_failure_with_a_reason(
    tmp_path: Path, model: ScriptedModel
) -> None:
    model.script(Reply(), Status(401))
    arguments = ("--model", "test-model", "--base-url", model.url, "--say", "what happened?", "--say", "and now?")
    async with demo(tmp_path, *arguments) as running:
        code, out, err = await running.end()
    assert (code, out) == (1, "reply 1\n\n")
    request = model.requests[0]
    assert request.text.count("pipeline_event story_id=") == len(OPENING)
    assert request.text.endswith("<@you:localhost>: what happened?")
    [kept] = os.listdir(tmp_path)
    assert f"the logs of this run are kept in {tmp_path / kept}" in err
    assert "musher: the bot could not answer: The language model refused my key" in err
    assert "Traceback" not in err


async def test_a_script_that_is_interrupted_while_it_starts_fails(tmp_path: Path) -> None:
    async with demo(tmp_path, "--say", "what happened?") as running:
        await running.read_until(running.process.stderr, "starting")
        running.process.terminate()
        assert await running.end() == (128 + signal.SIGTERM, "", "\nended\n")
    assert os.listdir(tmp_path) == []


async def test_piped_lines_are_answered_and_a_second_start_goes_on_with_the_room(tmp_path: Path) -> None:
    async with demo(tmp_path) as running:
        running.type("what happened?\n/events\n/help\n/dance\n/quit\nnever said\n")
        await running.read_until(running.process.stdout, INTRODUCED)
        code, out, err = await running.end()
        assert (code, err) == (0, "starting a homeserver and the bot …\n")
        assert "· 42: 3_qa → 2_current (GatesFailed)\n" in out
        assert out.index("Musher: So far, 10 things happened:") < out.rindex("· 43: 2_current → 3_qa (GatesStarted)")
        assert "/quit    end everything" in out
        assert "there is no command /dance; /help lists them" in out
        assert "never said" not in out
        assert "\033" not in out
        await running.assert_nothing_is_left()
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / ".demo").iterdir()} == {0}

    async with demo(tmp_path) as running:
        running.type("story 42\n", last=True)
        code, out, _ = await running.end()
        assert code == 0
        assert "you: what happened?\n\nMusher: So far, 10 things happened:" in out
        assert out.index("Musher: So far") < out.index(INTRODUCED), "addresses stand below the history"
        assert "Musher: Since we last spoke, 4 things happened:" in out
        assert "**Story 42** " in out


async def test_a_chat_whose_input_is_closed_ends_as_at_the_end_of_its_input(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-m", "bot", "demo"),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    code, out, err = await Demo(process).end()
    assert (code, err) == (0, "starting a homeserver and the bot …\n")
    assert INTRODUCED in out


async def test_a_signal_ends_a_chat_without_npm_and_only_one_runs_in_a_folder(tmp_path: Path) -> None:
    async with demo(tmp_path, "--web", PATH="") as running:
        await running.read_until(running.process.stdout, INTRODUCED)
        async with demo(tmp_path) as second:
            code, out, err = await second.end()
            assert (code, out) == (1, "")
            assert f"musher: another embedded homeserver runs in {tmp_path / '.demo'}: end that one first" in err
        running.process.terminate()
        code, _, err = await running.end()
        assert (code, err.splitlines()) == (
            0,
            [
                "starting a homeserver and the bot …",
                "preparing the browser client …",
                "no browser client: npm is not installed; it comes with Node.js 18 or newer",
                "",
                "ended",
            ],
        )
        await running.assert_nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
async def test_other_signals_end_it_before_it_has_started(tmp_path: Path, number: signal.Signals) -> None:
    async with demo(tmp_path) as running:
        await running.read_until(running.process.stderr, "starting")
        running.process.send_signal(number)
        assert await running.end() == (0, "", "\nended\n")


async def test_a_homeserver_that_dies_ends_the_chat_with_one_line(tmp_path: Path) -> None:
    async with demo(tmp_path) as running:
        await running.read_until(running.process.stdout, INTRODUCED)
        [synapse] = children_of(running.process.pid)
        os.kill(synapse, signal.SIGKILL)
        code, _, err = await running.end()
        assert code == 1
        [line] = [line for line in err.splitlines() if line.startswith("musher: ")]
        assert re.match(r"musher: the homeserver at http://127\.0\.0\.1:\d+ does not answer any more", line)
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda folder: (folder / ".demo").touch(), r"\.demo can't be made"),
        (
            lambda folder: ((folder / ".demo").mkdir(), (folder / ".demo" / "musher.log").mkdir()),
            r"musher\.log: Is a d",
        ),
    ],
)
async def test_a_folder_that_cannot_be_used_is_named(
    tmp_path: Path, spoil: Callable[[Path], object], complaint: str
) -> None:
    spoil(tmp_path)
    async with demo(tmp_path) as running:
        code, out, err = await running.end()
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert re.search(complaint, err)


async def test_a_script_has_no_browser_client(tmp_path: Path) -> None:
    async with demo(tmp_path, "--web", "--say", "hello") as running:
        code, out, err = await running.end()
    assert (code, out) == (2, "")
    assert "--web is given with --say TEXT" in err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", ["", " \n"])
async def test_a_script_that_says_nothing_is_refused_at_once(tmp_path: Path, text: str) -> None:
    async with demo(tmp_path, "--say", "hello", "--say", text) as running:
        code, out, err = await running.end()
    assert (code, out) == (2, "")
    assert "--say is given an empty TEXT" in err
    assert os.listdir(tmp_path) == []
