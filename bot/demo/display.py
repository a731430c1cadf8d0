"""What the chat needs of whatever shows it: a screen with a line to type in, or plain lines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from bot.demo.accounts import BOT, PERSON
from bot.demo.conversation import Said
from crdt import PipelineEvent

EARLIER_SHOWN: Final = 4
"""Messages of an earlier start that are shown again."""
HELP: Final = """\
/events  the newest pipeline events
/help    this list
/quit    end everything (so do Ctrl-C and Ctrl-D)
All else is said in the room. Try: what happened?  ·  status  ·  story 42  ·  did anything fail?"""


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a person has to know at the start. `web` is the address of the browser client, if there is one."""

    room_name: str
    voice: str
    url: str
    alias: str
    user_id: str
    password: str = field(repr=False)
    folder: Path
    log_file: Path
    web: str | None = field(repr=False)


class Display(Protocol):
    """Shows the chat. Everything may be called at any time, from the event loop."""

    @property
    def waits_for_replies(self) -> bool:
        """Whether a line waits for the reply to the one before: true where nobody reads along."""

    def introduce(self, introduction: Introduction) -> None: ...
    def recall(self, earlier: Sequence[Said]) -> None: ...
    def say(self, said: Said) -> None: ...
    def move(self, event: PipelineEvent) -> None: ...
    def type(self, typing: bool) -> None: ...
    def tell(self, text: str) -> None:
        """Show what was asked for by a command."""

    def note(self, text: str) -> None:
        """Show what goes on, or what went wrong."""

    def lines(self) -> AsyncGenerator[str, None]:
        """The lines that are typed, until there are no more. To be closed."""


def is_of_person(said: Said) -> bool:
    """Whether the person at the terminal said it, there or with another client."""
    return said.sender.startswith(f"@{PERSON}:")


def is_of_bot(said: Said) -> bool:
    return said.sender.startswith(f"@{BOT}:")


def name_of(said: Said) -> str:
    return "you" if is_of_person(said) else "Musher" if is_of_bot(said) else said.sender


def event_line(event: PipelineEvent) -> str:
    """Write an event in a line."""
    stages = " → ".join(stage for stage in (event.from_stage, event.to_stage) if stage)
    return f"· {event.story_id}: {stages} ({event.pipeline_event})"
