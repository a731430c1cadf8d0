"""The screen on a real pseudo-terminal: a child process draws, the test types and reads what would be seen."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import pytest

from tests.bot.demo.seat import Seat

PLAY = r"""
import asyncio
from contextlib import aclosing
from bot.demo.conversation import Said
from bot.demo.screen import Screen
from bot.demo.terminal import Terminal
from crdt import PipelineEvent

async def main():
    screen = Screen(Terminal(on_gone=lambda: None))
    screen.recall([Said("@you:localhost", "long ago"), Said("@musher:localhost", "**yes**")])
    async with aclosing(screen.lines()) as lines:
        async for line in lines:
            if line == "move":
                screen.move(PipelineEvent("שלום\u202e", "2_current", "3_qa", "GatesFailed"))
                screen.type(True)
            elif line == "reply":
                asyncio.get_running_loop().call_later(0.3, screen.say, Said("@musher:localhost", "late **reply**"))
            elif line == "evil":
                screen.say(Said("@\x1b]0;owned\x07:localhost", "\x1b[2J\x1b]52;c;eA==\x07"))
                screen.tell("\x1b[3J")
                screen.note("told\x9b2J")
            else:
                screen.tell(f"got {line!r}")
    print("over")

asyncio.run(main())
"""


@pytest.fixture
def seat() -> Iterator[Seat]:
    with Seat("-c", PLAY) as seat:
        yield seat


def test_a_conversation_from_the_history_to_the_end(seat: Seat) -> None:
    seat.read_until(r"(?s)Earlier in this room.*› long ago.*Musher.*yes.*pipeline")
    assert "\x1b[1myes" in seat.seen
    seat.type("\x1b[A")  # up: what was said in an earlier start
    seat.read_until("long ago")
    seat.type("\r")
    seat.read_until("got 'long ago'")

    seat.type("reply\r")
    seat.type("half ")
    seat.read_until(r"(?s)late reply.*› half")  # what is being typed stands below the reply
    seat.type("done\x1b\rtwo\r")
    seat.read_until(r"got 'half done\\ntwo'")
    assert "\x1b[1mreply" in seat.seen

    seat.type("move\r")
    seat.read_until(r"(?s)Musher is typing ….*\d\d:\d\d:\d\d +\u2068שלום\\u202e\u2069 +2_current → 3_qa +GatesFailed")
    seat.resize(50, 160)
    seat.process.send_signal(signal.SIGWINCH)
    seat.type("/x\r")
    seat.read_until("got '/x'")

    seat.type("evil\r")
    seat.read_until(r"told\\x9b2J")
    assert not re.search(r"\x1b\]|\x1b\[[23]J|\x9b|\x07", seat.seen)

    seat.type("kept\x04")  # Ctrl-D ends nothing while something stands in the line
    seat.type("\x15\x04")
    seat.read_until("over")
    seat.assert_left_in_order()


def test_ctrl_c_ends_it_and_no_color_has_no_colours() -> None:
    with Seat("-c", PLAY, NO_COLOR="1") as seat:
        seat.read_until("pipeline")
        seat.type("half typed\x03")
        seat.read_until("over")
        seat.assert_left_in_order()
        assert not re.search(r"\x1b\[[\d;]*(3[0-7]|9[0-7]|38|48)[\d;]*m", seat.seen)
