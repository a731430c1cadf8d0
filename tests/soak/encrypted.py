"""People who talk with the bot in encrypted rooms, and what their clients and the homeserver show at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

from bot.demo.homeserver import Homeserver
from tests.bot.matrix.e2ee.nio_person import NioPerson
from tests.servers.synapse import RoomEvent
from tests.soak.oracle import Findings
from tests.system.outside import answered

ANSWERED_WITHIN_S: Final = 60.0


class Talk:
    """One person and their encrypted room."""

    def __init__(self, person: NioPerson, room: str) -> None:
        self.person = person
        self.room = room
        self.said: dict[str, str] = {}
        """The words by event."""

    @classmethod
    @asynccontextmanager
    async def begun(cls, synapse: Homeserver, name: str, folder: Path, bot: str) -> AsyncIterator[Self]:
        """Register the person, and have them make a room, which the bot joins. `folder`: where the client's keys go."""
        async with NioPerson.on(synapse, name, folder / name) as person:
            room = await person.create_room(bot)
            await person.until_member(room, bot)
            yield cls(person, room)

    async def say(self) -> str:
        """Say something new; returns the event's id."""
        text = f"question {len(self.said)} of {self.person.user_id}"
        event_id = await self.person.say(self.room, text)
        self.said[event_id] = text
        return event_id

    async def ask(self, within: float = ANSWERED_WITHIN_S) -> None:
        """Say something, sometimes two things at once, and wait for the answer to the last."""
        said = [await self.say() for _ in range(1 + len(self.said) % 2)]
        try:
            await self.person.until(lambda: said[-1] in map(answered, self._heard()), within)
        except TimeoutError as error:
            raise TimeoutError(f"message {said[-1]} of {self.room} was not answered within {within:g} s") from error

    def _heard(self) -> list[RoomEvent]:
        return [each.source for each in self.person.heard]

    async def timeline(self, bot: str, findings: Findings) -> list[RoomEvent]:
        """The room's messages as people read them, oldest first."""
        read = {each: {"body": text} for each, text in self.said.items()}
        read |= {each["event_id"]: each["content"] for each in self._heard()}
        history = await self.person.history(self.room)
        return decrypted(self.room, history[::-1], read, bot, findings)


def decrypted(
    room: str, history: Iterable[RoomEvent], read: Mapping[str, Mapping[str, Any]], bot: str, findings: Findings
) -> list[RoomEvent]:
    """A room's messages with the contents that its people read, by event.

    The bot's have to be encrypted, all of them, and each message has to be read.
    """
    timeline, joined = [], 0
    for event in history:
        kind, event_id, sender = event["type"], event["event_id"], event["sender"]
        if kind == "m.room.encrypted" and event_id in read:
            timeline.append(event | {"content": event["content"] | read[event_id]})
        elif kind == "m.room.encrypted":
            findings.wrong.append(f"{room}: nobody can read {event_id} of {sender}")
        elif sender == bot and kind == "m.room.member":
            joined += 1
        elif sender == bot:
            findings.wrong.append(f"{room}: {event_id} of the bot is readable ({kind})")
    if joined != 1:
        findings.wrong.append(f"{room}: the bot's membership changed {joined} times")
    return timeline
