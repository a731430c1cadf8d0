"""The terminal: real pipes and a real pseudo-terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.demo.terminal import Terminal, visible

REPOSITORY = Path(__file__).parents[3]
ECHO = """
import asyncio
from bot.demo.terminal import typed_lines

async def main():
    async for line in typed_lines():
        print(ascii(line), flush=True)
        if line == "/quit":
            return

asyncio.run(main())
"""


def echoed(typed: bytes) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", ECHO], input=typed, cwd=REPOSITORY, capture_output=True, timeout=60, check=True
    )
    assert done.stderr == b""
    return done.stdout.decode().splitlines()


@pytest.fixture
def screen() -> Iterator[tuple[int, int]]:
    master, slave = os.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def test_what_would_steer_the_terminal_is_shown_as_an_escape() -> None:
    assert visible("a\x1b[2Jb\rc\u202ed\x00\u2028e") == "a\\x1b[2Jb\\rc\\u202ed\\x00\\u2028e"
    plain = "line\n\ttab · → é 日本 👩\u200d💻\u00a0x"
    assert visible(plain) == plain


def test_there_are_no_escape_codes_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(on_gone=lambda: None)
    terminal.show("Musher: ", "bold", after="hello")
    terminal.note("starting")
    assert capsys.readouterr() == ("Musher: hello\n", "starting\n")


@pytest.mark.parametrize(("name", "value", "styled"), [("TERM", "xterm", True), ("TERM", "dumb", False)])
def test_a_terminal_gets_styles_if_it_knows_them(
    screen: tuple[int, int], monkeypatch: pytest.MonkeyPatch, name: str, value: str, styled: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv(name, value)
    master, slave = screen
    with open(slave, "w", closefd=False) as out:
        monkeypatch.setattr(sys, "stdout", out)
        Terminal(on_gone=lambda: None).show("event", "dim", after="!")
    shown = os.read(master, 100).decode()
    assert shown == ("\033[2mevent\033[0m!\r\n" if styled else "event!\r\n")


def test_a_reader_that_has_gone_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    told: list[str] = []
    with open(writer, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        terminal = Terminal(on_gone=lambda: told.append("gone"))
        terminal.show("nobody")
        terminal.show("hears this")
    assert told == ["gone"]


def test_lines_come_whole_and_the_last_needs_no_end() -> None:
    assert echoed("één\r\n\nlast".encode()) == [r"'\xe9\xe9n\r'", "''", "'last'"]
    assert echoed(b"\xff\n") == [r"'\ufffd'"]


def test_one_may_stop_reading_before_the_end() -> None:
    assert echoed(b"/quit\n" + b"more\n" * 100_000) == ["'/quit'"]


def test_a_closed_standard_input_has_no_lines() -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec '{sys.executable}' -c \"$0\" <&-", ECHO], cwd=REPOSITORY, capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")
