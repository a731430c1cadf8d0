"""How a room is encrypted is asked right before a send, or a moment ahead of it, and never taken from further back."""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from typing import Any, cast

import pytest

from bot.matrix.e2ee import Encryption
from bot.matrix.errors import MatrixError, Refused, Unreachable
from bot.matrix.room_rules import FRESH_S, RoomRules
from bot.matrix.rooms import Rooms
from bot.matrix.wire import Wire

ROOM = "!room:example.org"
MEGOLM = {"algorithm": "m.megolm.v1.aes-sha2"}
PLAIN = Refused("https://example.org", "M_NOT_FOUND", "Event not found.")
DOWN = Unreachable("https://example.org", "no connection")


class Answers:
    """A homeserver, and what encryption remembers of it."""

    def __init__(self, *answers: dict[str, Any] | MatrixError) -> None:
        self.answers = deque(answers)
        self.asked = 0
        self.known: dict[str, dict[str, Any]] = {}
        self.now = 0.0
        wire, encryption = cast(Wire, self), cast(Encryption, self)
        self.rules = RoomRules(wire, Rooms(), encryption, clock=lambda: self.now)

    async def get(self, *path: str, room: str) -> dict[str, Any]:
        self.asked += 1
        await asyncio.sleep(0)
        answer = self.answers.popleft()
        if isinstance(answer, MatrixError):
            raise answer
        return answer

    def rules_of(self, room_id: str) -> dict[str, Any] | None:
        return self.known.get(room_id)

    async def remember_rules(self, room_id: str, found: dict[str, Any]) -> dict[str, Any]:
        return self.known.setdefault(room_id, found)


async def test_what_was_asked_ahead_counts_for_one_send() -> None:
    server = Answers(PLAIN, MEGOLM)
    server.rules.ask_ahead(ROOM)
    server.now += FRESH_S / 2
    assert await server.rules.of(ROOM) is None
    assert server.asked == 1
    assert await server.rules.of(ROOM) == MEGOLM
    assert server.asked == 2


async def test_what_was_asked_too_long_before_does_not_count() -> None:
    server = Answers(PLAIN, MEGOLM)
    server.rules.ask_ahead(ROOM)
    await asyncio.sleep(0)
    server.now += FRESH_S
    assert await server.rules.of(ROOM) == MEGOLM


async def test_a_room_that_is_encrypted_is_not_asked_for_again() -> None:
    server = Answers(MEGOLM)
    server.rules.ask_ahead(ROOM)
    assert await server.rules.of(ROOM) == MEGOLM
    server.rules.ask_ahead(ROOM)
    assert await server.rules.of(ROOM) == MEGOLM
    assert server.asked == 1


async def test_a_failure_ahead_is_that_of_the_send() -> None:
    server = Answers(DOWN, PLAIN)
    server.rules.ask_ahead(ROOM)
    with pytest.raises(Unreachable):
        await server.rules.of(ROOM)
    assert await server.rules.of(ROOM) is None


async def test_a_failure_ahead_of_a_send_that_never_comes_is_nobodys() -> None:
    met: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: met.append(context))
    server = Answers(DOWN, DOWN)
    server.rules.ask_ahead(ROOM)
    server.rules.ask_ahead(ROOM)
    for _ in range(10):
        await asyncio.sleep(0)
    server.rules._ahead.clear()
    gc.collect()
    assert server.asked == 2
    assert met == []
