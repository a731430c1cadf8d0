"""`musher demo`: chooses between chat and script, keeps the log off the terminal, and ends everything on a signal."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from bot.config import ConfigError
from bot.demo.chat import chat
from bot.demo.scene import log_file
from bot.demo.script import say_all
from bot.demo.synapse_folder import SynapseFolder
from bot.demo.terminal import Terminal
from bot.demo.voice import Voice, read_voice
from bot.logs import configure_logging

FOLDER: Final = Path(".demo")
"""In the current directory; a chat goes on where the last one there stopped."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Act = Callable[[Path, Voice, Terminal], Coroutine[None, None, None]]


def run_demo(arguments: argparse.Namespace) -> int:
    """Run the demo and give its exit code: 0; for a script that was interrupted 128 + the signal's number.

    Raises `MusherError`, `CrdtError`, `OSError`, or groups of them, once everything has ended.
    """
    voice = read_voice(arguments)
    if arguments.say and arguments.web:
        raise ConfigError("the command line", ["--web is given with --say TEXT, which ends by itself"])
    if any(not text.strip() for text in arguments.say or ()):
        raise ConfigError("the command line", ["--say is given an empty TEXT, which nobody answers"])
    if arguments.say:
        with _scratch_folder() as folder, _logging_into(folder):
            interrupted = asyncio.run(_play(partial(say_all, arguments.say), folder, voice))
        return 128 + interrupted if interrupted else 0
    with _logging_into(FOLDER):
        asyncio.run(_play(partial(chat, arguments.web), FOLDER, voice))
    return 0


async def _play(act: Act, folder: Path, voice: Voice) -> int:
    """Run `act` to its end, or to a signal, whose number is returned. A second signal makes the end less gentle."""
    interrupted = 0

    def interrupt(number: int) -> None:
        nonlocal interrupted
        interrupted = number
        task.cancel()

    terminal = Terminal(on_gone=partial(interrupt, signal.SIGPIPE))
    task = asyncio.create_task(act(folder, voice, terminal))
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, interrupt, number)
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
    elif interrupted:
        terminal.note("\nended")
    return interrupted


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """A folder that is gone afterwards, unless something failed: errors name the logs in it."""
    folder = Path(tempfile.mkdtemp(prefix="musher-demo-"))
    try:
        yield folder
    except BaseException:
        print(f"the logs of this run are kept in {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)


@contextmanager
def _logging_into(folder: Path) -> Iterator[None]:
    """Write the log of this process into the folder, which is made if it is missing."""
    path = log_file(SynapseFolder.at(folder).path)
    with open(path, "a", encoding="utf-8", opener=partial(os.open, mode=0o600)) as stream:
        configure_logging("console", "info", stream)
        try:
            yield
        finally:
            configure_logging("console")
