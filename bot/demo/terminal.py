"""The terminal: what people read there, and the lines that they type.

Nothing that comes out of the room can steer the terminal: control characters are shown as escapes.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
import threading
import unicodedata
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal, TextIO

Style = Literal["plain", "dim", "bold"]

STDIN: Final = 0
_STYLES: Final[dict[Style, str]] = {"plain": "", "dim": "\033[2m", "bold": "\033[1m"}
_RESET: Final = "\033[0m"
_CHUNK_BYTES: Final = 65_536
_ISOLATE: Final = "\u2068"
_END_ISOLATE: Final = "\u2069"
# Bidi controls reorder what a reader sees.
_BIDI: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Terminal:
    """Prints: what was asked for to standard output, all else to standard error.

    `on_gone` is called once, when nobody can read any more; what is printed afterwards is dropped.
    """

    def __init__(self, on_gone: Callable[[], None]) -> None:
        self._on_gone = on_gone
        self._gone = False
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")

    def show(self, text: str, style: Style = "plain", *, after: str = "") -> None:
        """Print to standard output; `after` follows on the same line, in plain style."""
        self._print(text, style, after, sys.stdout)

    def note(self, text: str) -> None:
        """Print to standard error."""
        self._print(text, "dim", "", sys.stderr)

    def can_draw(self) -> bool:
        """Whether both sides are a terminal that can move its cursor."""
        return os.isatty(STDIN) and sys.stdout.isatty() and _has_cursor()

    @contextmanager
    def kept_open(self, stream: TextIO | None = None) -> Iterator[None]:
        """Print in this block; that nobody can read any more is told once, and is no error."""
        try:
            yield
        except OSError:  # a closed pipe, or a terminal that hung up
            _silence(stream or sys.stdout)
            if not self._gone:
                self._gone = True
                self._on_gone()

    def _print(self, text: str, style: Style, after: str, stream: TextIO) -> None:
        if self._gone:
            return
        text, after = visible(text), visible(after)
        if style != "plain" and stream.isatty() and _has_cursor() and "NO_COLOR" not in os.environ:
            text = f"{_STYLES[style]}{text}{_RESET}"
        with self.kept_open(stream):
            print(text + after, file=stream, flush=True)


def visible(text: str) -> str:
    """Write text for a terminal: what would steer it, or reorder what is read, is escaped. Line breaks stay."""
    return "".join(
        character.encode("unicode_escape", "backslashreplace").decode() if _steers(character) else character
        for character in text
    )


def _steers(character: str) -> bool:
    if character in "\n\t":
        return False
    return character in _BIDI or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def isolated(text: str) -> str:
    """Keep a name that is written from right to left from reordering what stands beside it."""
    if any(unicodedata.bidirectional(character) in ("R", "AL") for character in text):
        return f"{_ISOLATE}{text}{_END_ISOLATE}"
    return text


def _has_cursor() -> bool:
    return os.environ.get("TERM") not in (None, "", "dumb", "unknown")


def _silence(stream: TextIO) -> None:
    """The interpreter flushes once more when it ends, and would complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


async def typed_lines() -> AsyncGenerator[str, None]:
    """The lines of standard input, without their ends, as they are typed.

    They are read in a thread: asyncio's pipes can't read a file, and make the terminal non-blocking for whoever prints
    to it. The thread bypasses `sys.stdin`, whose lock the interpreter would wait for when it ends.
    """
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def hand_over(line: str | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens any more
            loop.call_soon_threadsafe(lines.put_nowait, line)

    threading.Thread(target=_read_lines, args=(hand_over,), daemon=True, name="stdin").start()
    while (line := await lines.get()) is not None:
        yield line


def _read_lines(hand_over: Callable[[str | None], None]) -> None:
    rest = b""
    while chunk := _read_chunk():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            hand_over(line.decode(errors="replace"))
    if rest:
        hand_over(rest.decode(errors="replace"))
    hand_over(None)


def _read_chunk() -> bytes:
    try:
        return os.read(STDIN, _CHUNK_BYTES)
    except OSError:  # standard input is closed, or its terminal hung up: there is nothing more to come
        return b""
