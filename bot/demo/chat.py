"""The chat in the terminal: what is typed is said in the room; replies and pipeline events are printed as they come."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bot.demo.accounts import PERSON
from bot.demo.conversation import Said
from bot.demo.person import Refused
from bot.demo.scene import ROOM_NAME, Scene, log_file, open_scene
from bot.demo.terminal import STDIN, Terminal, typed_lines
from bot.demo.voice import Voice
from crdt import PipelineEvent

EARLIER_SHOWN: Final = 4
"""Messages of an earlier start that are shown again."""

_HELP: Final = """\
/events  the newest pipeline events
/help    this list
/quit    end everything (so do Ctrl-C and Ctrl-D)
All else is said in the room. Try: what happened?  ·  status  ·  story 42  ·  did anything fail?"""


def event_line(event: PipelineEvent) -> str:
    """Write an event the way the terminal shows it."""
    stages = " → ".join(stage for stage in (event.from_stage, event.to_stage) if stage)
    return f"· {event.story_id}: {stages} ({event.pipeline_event})"


async def chat(folder: Path, voice: Voice, terminal: Terminal) -> None:
    """Set the scene in `folder`, which is kept, and chat until `/quit` or the end of the input."""

    def on_said(said: Said) -> None:
        if not said.here:
            _show(terminal, said)

    def on_event(event: PipelineEvent) -> None:
        terminal.show(event_line(event), "dim")

    terminal.note("starting a homeserver and the bot …")
    async with open_scene(folder, voice.llm, in_memory=False, on_said=on_said, on_event=on_event) as scene:
        _introduce(terminal, folder, scene, voice)
        if scene.earlier:
            terminal.show("Earlier in this room:\n", "dim")
        for said in scene.earlier[-EARLIER_SHOWN:]:
            _show(terminal, said)
        await scene.feed.begin()
        async with asyncio.TaskGroup() as tasks:
            moving = tasks.create_task(scene.feed.keep_moving())
            await _converse(terminal, scene, voice.reply_within_s)
            moving.cancel()


def _introduce(terminal: Terminal, folder: Path, scene: Scene, voice: Voice) -> None:
    user_id = scene.conversation.person.user_id
    terminal.show(
        f"\nYou are in the room {ROOM_NAME!r} with Musher, on a homeserver of your own. {voice.introduction}\n"
        f"  homeserver  {scene.url}  (join with any Matrix client on this machine)\n"
        f"  room        {scene.alias}\n"
        f"  user        {user_id}, password {scene.password}\n"
        f"  kept in     {folder}/ (log: {log_file(folder)})\n"
        "A sample pipeline runs: lines with · are its events. Ask: what happened?\n"
        "/help lists the commands; /quit or Ctrl-C ends everything.\n"
    )


def _show(terminal: Terminal, said: Said) -> None:
    name = "you" if said.sender.startswith(f"@{PERSON}:") else "Musher"
    terminal.show(f"{name}: ", "bold", after=f"{said.body}\n")


async def _converse(terminal: Terminal, scene: Scene, reply_within_s: float) -> None:
    """Take one line after the other. Lines that come from a pipe or a file wait for the reply to the one before."""
    interactive = os.isatty(STDIN)
    async for line in typed_lines():
        text = line.strip()
        if text == "/quit":
            return
        if text.startswith("/"):
            _command(terminal, text, scene.feed.recent)
        elif text:
            try:
                if interactive:
                    await scene.conversation.say(text)
                else:
                    await scene.conversation.ask(text, reply_within_s)
            except Refused as error:
                terminal.note(f"not sent: {error}")


def _command(terminal: Terminal, command: str, recent: Iterable[PipelineEvent]) -> None:
    if command == "/help":
        terminal.show(_HELP)
    elif command == "/events":
        terminal.show("\n".join(event_line(event) for event in recent))
    else:
        terminal.show(f"there is no command {command.split(maxsplit=1)[0]}; /help lists them")
