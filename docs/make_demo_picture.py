"""Makes docs/demo.svg from a real run of `musher demo` in tmux: `python docs/make_demo_picture.py`."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).with_name("demo.svg")
COLUMNS, ROWS = 84, 46
PATIENCE_S = 60.0
TALK = (("what happened?", "Story 39"), ("and now?", "happened:"))
"""What is asked, and what the screen holds once it is answered."""
MOMENTS = 4
"""Events are to come at that many different times before the second question."""
# Without rich's web font: pictures in a README may load nothing.
SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px;
  line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


def tmux(*arguments: str) -> str:
    command = ["tmux", "-L", "musher-picture", *arguments]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def wait_until(holds: Callable[[str], bool]) -> str:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        screen = tmux("capture-pane", "-p", "-e", "-t", "demo")
        if holds(screen):
            return screen
        time.sleep(0.2)
    raise TimeoutError(f"the demo did not get on:\n{screen}")


def is_answered(question: str, answered: str, screen: str) -> bool:
    asked = screen.partition(question)[2]
    return answered in asked and "pipeline" in asked.rpartition("›")[2]


def wait_until_ended() -> None:
    """The demo needs its folder until it has ended, and tmux ends with it."""
    alive = ["tmux", "-L", "musher-picture", "has-session"]
    while subprocess.run(alive, capture_output=True, check=False).returncode == 0:
        time.sleep(0.2)


def play() -> str:
    """Hold the conversation, and return the screen with its colours."""
    musher = shlex.join([sys.executable, "-m", "bot", "demo"])
    with tempfile.TemporaryDirectory() as folder:
        size = ("-x", str(COLUMNS), "-y", str(ROWS))
        command = f"cd {shlex.quote(folder)} && PYTHONPATH={shlex.quote(str(PICTURE.parents[1]))} exec {musher}"
        tmux("-f", "/dev/null", "new-session", "-d", "-s", "demo", *size, command)
        try:
            wait_until(lambda screen: "›" in screen)
            for question, answered in TALK:
                if question != TALK[0][0]:
                    wait_until(lambda screen: len(set(re.findall(r"\d\d:\d\d:\d\d", screen))) >= MOMENTS)
                tmux("send-keys", "-t", "demo", question, "Enter")
                screen = wait_until(partial(is_answered, question, answered))
            return screen
        finally:
            tmux("send-keys", "-t", "demo", "C-c")
            wait_until_ended()


def main() -> None:
    screen = play()
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(screen.rstrip("\n")))
    console.save_svg(str(PICTURE), title="musher demo", code_format=SVG, unique_id="demo")


if __name__ == "__main__":
    main()
