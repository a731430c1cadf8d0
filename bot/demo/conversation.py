"""What is said in the demo's room, as the person there sees it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bot.demo.person import Person
from bot.errors import MusherError

NEWEST_EVENTS: Final = 50
"""Most events that one look at the room brings; more would have to come within a few milliseconds."""


class NoReply(MusherError):
    """The bot left a message without an answer."""

    def __init__(self, text: str, seconds: float) -> None:
        super().__init__(f"no reply to {text!r} within {seconds:g} s; musher.log tells what the bot did")


@dataclass(frozen=True, slots=True)
class Said:
    """A message in the room. `here`: it was sent from this terminal. `failed`: it tells that no answer came."""

    sender: str
    body: str
    reply_to: str | None = None
    here: bool = False
    failed: bool = False


class Conversation:
    """The person in the room. While `run` runs, each new message is handed to `on_said`, and `on_typing` is told
    whether somebody else is typing.
    """

    def __init__(
        self,
        person: Person,
        room_id: str,
        on_said: Callable[[Said], None],
        on_typing: Callable[[bool], None] = lambda typing: None,
    ) -> None:
        self.person = person
        self.room_id = room_id
        self._on_said = on_said
        self._on_typing = on_typing
        self._since: str | None = None
        self._replies: defaultdict[str, asyncio.Future[Said]] = defaultdict(asyncio.get_running_loop().create_future)

    async def open(self) -> list[Said]:
        """Begin to look; returns what was said of late, oldest first."""
        return await self._look()

    async def run(self) -> None:
        """Look for new messages until cancelled. Raises `HomeserverGone`."""
        while True:
            for said in await self._look():
                if said.reply_to is not None and not self._replies[said.reply_to].done():
                    self._replies[said.reply_to].set_result(said)
                self._on_said(said)

    async def say(self, text: str) -> str:
        """Send a message and return its event id. Raises `Refused`, `HomeserverGone`."""
        return await self.person.say(self.room_id, text)

    async def ask(self, text: str, seconds: float) -> Said:
        """Send a message and wait for the reply to it. Raises `NoReply`, `Refused`, `HomeserverGone`."""
        event_id = await self.say(text)
        try:
            async with asyncio.timeout(seconds):
                return await self._replies[event_id]
        except TimeoutError as error:
            raise NoReply(text, seconds) from error

    async def _look(self) -> list[Said]:
        room, self._since = await self.person.sync(self.room_id, self._since, newest=NEWEST_EVENTS)
        for event in room.get("ephemeral", {}).get("events", ()):
            if event["type"] == "m.typing":
                self._on_typing(any(user_id != self.person.user_id for user_id in event["content"]["user_ids"]))
        found = (_read(event) for event in room.get("timeline", {}).get("events", ()))
        return [said for said in found if said is not None]


def _read(event: Mapping[str, Any]) -> Said | None:
    """Read a message; `None` for everything else, edits and deleted messages included."""
    content = event["content"]
    relation = content.get("m.relates_to", {})
    body = content.get("body")
    if event["type"] != "m.room.message" or not isinstance(body, str) or relation.get("rel_type") == "m.replace":
        return None
    return Said(
        sender=event["sender"],
        body=body,
        reply_to=relation.get("m.in_reply_to", {}).get("event_id"),
        # The homeserver tells a transaction id only to the device that sent the message.
        here="transaction_id" in event.get("unsigned", {}),
        failed=content.get("msgtype") == "m.notice",
    )
