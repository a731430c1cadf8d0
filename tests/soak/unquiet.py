"""A room whose people put the bot out and ask it back, replace the room by a new one, and take back what they said."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import count

from tests.servers.synapse import Person
from tests.soak.oracle import DELIVERY_ID, Findings
from tests.soak.scene import Watch
from tests.system.outside import answered


@dataclass(eq=False)
class UnquietRoom:
    """Something happens in it, then the bot is asked a question that it is to answer, and so on."""

    person: Person
    bot: str
    watch: Watch
    rooms: list[str]
    """The room, after those that it has replaced."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)

    async def go_on(self, chance: random.Random, within: float) -> str:
        """Let one thing happen, and wait for the answer to a question after it; returns what it was."""
        happens = chance.choice([self._kick, self._ban, self._upgrade, self._redact])
        await happens()
        await self.person.wait_for_membership(self.rooms[-1], self.bot, timeout=within)
        await self.ask(within)
        return happens.__name__.removeprefix("_")

    async def ask(self, within: float) -> None:
        """Ask a question and wait for its answer."""
        room = self.rooms[-1]
        asked = await self.person.say(room, f"question {next(self._numbers)} in the unquiet room")
        self.asked.append((room, asked))
        await self.watch.wait_until_settled(room, asked, within)

    async def _kick(self) -> None:
        await self.person.kick(self.rooms[-1], self.bot)
        await self.person.invite(self.rooms[-1], self.bot)

    async def _ban(self) -> None:
        room = self.rooms[-1]
        await self.person.ban(room, self.bot)
        await self.person.request("POST", "rooms", room, "unban", body={"user_id": self.bot})
        await self.person.invite(room, self.bot)

    async def _upgrade(self) -> None:
        self.rooms.append(await self.person.upgrade_room(self.rooms[-1]))
        await self.person.invite(self.rooms[-1], self.bot)

    async def _redact(self) -> None:
        said = await self.person.say(self.rooms[-1], f"slip {next(self._numbers)} in the unquiet room")
        await self.person.redact(self.rooms[-1], said)

    async def judge(self, findings: Findings) -> None:
        """Each question has one answer, and no delivery stands twice."""
        for room in self.rooms:
            replies = await self.person.said(room, self.bot)
            targets = Counter(answered(each) for each in replies)
            deliveries = Counter(str(each["content"].get(DELIVERY_ID)) for each in replies)
            for there, asked in self.asked:
                if there == room and targets[asked] != 1:
                    (findings.twice if targets[asked] else findings.lost).append(f"{room}: the answer to {asked}")
            findings.twice += [f"{room}: delivery {each}" for each, number in deliveries.items() if number > 1]
