"""The chat in plain lines: for pipes and files, and for terminals that can do no more than print."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence

from bot.demo.conversation import Said
from bot.demo.display import EARLIER_SHOWN, Introduction, event_line, name_of
from bot.demo.terminal import STDIN, Terminal, typed_lines
from crdt import PipelineEvent


class Plain:
    """Prints the chat line by line."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._interactive = os.isatty(STDIN)

    @property
    def waits_for_replies(self) -> bool:
        return not self._interactive

    def introduce(self, introduction: Introduction) -> None:
        web = f"  in a browser {introduction.web}\n" if introduction.web else ""
        self._terminal.show(
            f"\nYou are in the room {introduction.room_name!r} with Musher, on a homeserver of your own. "
            f"{introduction.voice}\n"
            f"  homeserver  {introduction.url}  (join with any Matrix client on this machine)\n"
            f"  room        {introduction.alias}\n"
            f"  user        {introduction.user_id}, password {introduction.password}\n"
            f"{web}"
            f"  kept in     {introduction.folder}/ (log: {introduction.log_file})\n"
            "A sample pipeline runs: lines with · are its events. Ask: what happened?\n"
            "/help lists the commands; /quit or Ctrl-C ends everything.\n"
        )

    def recall(self, earlier: Sequence[Said]) -> None:
        if earlier:
            self._terminal.show("Earlier in this room:\n", "dim")
        for said in earlier[-EARLIER_SHOWN:]:
            self._show(said)

    def say(self, said: Said) -> None:
        if not said.here:
            self._show(said)

    def move(self, event: PipelineEvent) -> None:
        self._terminal.show(event_line(event), "dim")

    def type(self, typing: bool) -> None:
        if typing and self._interactive:
            self._terminal.note("Musher is typing …")

    def tell(self, text: str) -> None:
        self._terminal.show(text)

    def note(self, text: str) -> None:
        self._terminal.note(text)

    def lines(self) -> AsyncGenerator[str, None]:
        return typed_lines()

    def _show(self, said: Said) -> None:
        self._terminal.show(f"{name_of(said)}: ", "bold", after=f"{said.body}\n")
