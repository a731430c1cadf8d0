"""`musher demo --say`: says each text in turn and prints the replies, and nothing else, to standard output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bot.demo.conversation import Said
from bot.demo.display import event_line
from bot.demo.scene import open_scene
from bot.demo.terminal import Terminal
from bot.demo.voice import Voice
from bot.errors import MusherError
from crdt import PipelineEvent

EVENTS_BETWEEN: Final = 3
"""What happens between two texts, so that each reply has news."""


class ReplyFailed(MusherError):
    """The bot answered that it can't answer."""

    def __init__(self, notice: str) -> None:
        super().__init__(f"the bot could not answer: {notice}")


async def say_all(texts: Sequence[str], folder: Path, voice: Voice, terminal: Terminal) -> None:
    """Set the scene in an empty `folder`, where the same things happen each time, and say each text.

    Raises `NoReply`, `ReplyFailed`, and what `open_scene` does.
    """

    def on_said(said: Said) -> None:
        """Replies are printed by whoever waits for them."""

    def on_event(event: PipelineEvent) -> None:
        terminal.note(event_line(event))

    terminal.note("starting a homeserver and the bot …")
    async with open_scene(folder, voice.llm, in_memory=True, on_said=on_said, on_event=on_event) as scene:
        await scene.feed.begin()
        for number, text in enumerate(texts):
            if number:
                await scene.feed.play(EVENTS_BETWEEN)
                terminal.show("")
            terminal.note(f"you: {text}")
            reply = await scene.conversation.ask(text, voice.reply_within_s)
            if reply.failed:
                raise ReplyFailed(reply.body)
            terminal.show(reply.body)
