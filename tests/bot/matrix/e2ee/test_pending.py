"""Messages whose key is late: asked for, told of once, and read when it comes, whatever happens in between."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bot.matrix import KeysUnavailable
from bot.matrix.e2ee import pending
from tests.bot.matrix.e2ee.conftest import Bot, PersonMaker, enter
from tests.bot.matrix.e2ee.nio_person import NioPerson

HOUR_MS = 3_600_000


class HeldBack:
    """A homeserver that holds messages between devices back until they are let through."""

    def __init__(self, bot: Bot, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[Any] = []
        self.holds = True
        self._monkeypatch = monkeypatch
        self.over(bot)

    def over(self, bot: Bot) -> None:
        """Stand between this start of the bot and its homeserver."""
        wire = bot.client._wire
        get = wire.get

        async def intercepted(*path: str, **options: Any) -> dict[str, Any]:
            answer = await get(*path, **options)
            if path == ("sync",):
                if self.holds:
                    self.events += answer.pop("to_device", {}).get("events", [])
                else:
                    answer.setdefault("to_device", {}).setdefault("events", [])[:0] = self.events
                    self.events = []
            return answer

        self._monkeypatch.setattr(wire, "get", intercepted)


@pytest.fixture
def held_back(bot: Bot, room: str, monkeypatch: pytest.MonkeyPatch) -> HeldBack:
    return HeldBack(bot, monkeypatch)


async def until_waiting(bot: Bot, count: int) -> None:
    while bot.client.encryption_counts is None or bot.client.encryption_counts.waiting < count:
        await bot.sync(500)


async def test_a_message_is_read_when_its_key_comes(bot: Bot, alice: NioPerson, room: str, held_back: HeldBack) -> None:
    first = await alice.say(room, "one")
    second = await alice.say(room, "two")
    await until_waiting(bot, 2)
    assert bot.heard == []
    held_back.holds = False
    batch = await bot.sync()
    assert [each.event_id for each in batch.messages] == [first, second]
    assert (await bot.sync()).messages == ()
    assert bot.client.encryption_counts is not None
    assert bot.client.encryption_counts.waiting == 0


async def test_messages_that_wait_stay_in_order_when_the_wall_clock_steps_back(
    bot: Bot, alice: NioPerson, room: str, held_back: HeldBack, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await alice.say(room, "one")
    await until_waiting(bot, 1)
    monkeypatch.setattr(pending, "now_ms", lambda: time.time_ns() // 1_000_000 - HOUR_MS)
    second = await alice.say(room, "two")
    await until_waiting(bot, 2)
    held_back.holds = False
    batch = await bot.sync()
    assert [each.event_id for each in batch.messages] == [first, second]


async def test_nobody_is_told_of_a_late_key_because_the_wall_clock_steps(
    bot: Bot, alice: NioPerson, room: str, held_back: HeldBack, monkeypatch: pytest.MonkeyPatch
) -> None:
    await alice.say(room, "one")
    await until_waiting(bot, 1)
    monkeypatch.setattr(pending, "now_ms", lambda: time.time_ns() // 1_000_000 + HOUR_MS)
    assert (await bot.sync(500)).undecryptable == ()


async def test_a_message_is_read_when_its_key_comes_after_a_restart(
    bot: Bot, alice: NioPerson, room: str, held_back: HeldBack
) -> None:
    await alice.say(room, "one")
    await until_waiting(bot, 1)
    await bot.start()
    held_back.over(bot)
    held_back.holds = False
    await bot.until_heard("one")


async def test_a_message_that_was_read_but_not_admitted_comes_again(
    bot: Bot, alice: NioPerson, room: str, held_back: HeldBack
) -> None:
    await alice.say(room, "one")
    await until_waiting(bot, 1)
    held_back.holds = False
    since = bot.since
    await bot.sync()
    assert len(bot.heard) == 1
    bot.since = since
    await bot.start()
    await bot.until_heard("one")
    await bot.sync()
    assert [each.body for each in bot.heard[1:]] == ["one"]


async def test_a_message_that_was_read_in_a_step_which_broke_off_comes_again(
    bot: Bot, alice: NioPerson, room: str, held_back: HeldBack, monkeypatch: pytest.MonkeyPatch
) -> None:
    await alice.say(room, "one")
    await until_waiting(bot, 1)
    held_back.holds = False

    async def full_disk(next_batch: str) -> None:
        raise KeysUnavailable("the key file", "database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(bot.encryption, "end_step", full_disk)
        with pytest.raises(KeysUnavailable):
            await bot.sync()
    await bot.until_heard("one")
    assert (await bot.sync()).messages == ()


async def test_its_key_is_asked_for_once(bot: Bot, alice: NioPerson, room: str, held_back: HeldBack) -> None:
    await alice.say(room, "one")
    await alice.say(room, "two")
    await until_waiting(bot, 2)
    requests = [each for each in await alice.peek_to_device() if each["type"] == "m.room_key_request"]
    (asked,) = [each["content"] for each in requests]
    assert asked["body"]["room_id"] == room
    assert asked["requesting_device_id"] == (bot.identity.device_id if bot.identity else "")


async def test_people_are_told_once_of_a_key_that_does_not_come(
    make_bot: Callable[..., Awaitable[Bot]], alice: NioPerson, monkeypatch: pytest.MonkeyPatch
) -> None:
    bot = await make_bot(notice_after_s=0)
    room = await enter(bot, alice)
    HeldBack(bot, monkeypatch)
    first = await alice.say(room, "one")
    await alice.say(room, "two")
    since = bot.since
    while not bot.batches[-1].undecryptable:
        await bot.sync(500)
    (told,) = bot.batches[-1].undecryptable
    assert (told.room_id, told.sender, told.event_id) == (room, alice.user_id, first)
    bot.since = since  # as if the process had died before it could store that
    (again,) = (await bot.sync()).undecryptable
    assert again == told
    await bot.sync()
    assert (await bot.sync()).undecryptable == ()
    await bot.start()
    assert (await bot.sync()).undecryptable == ()


async def test_what_was_taken_back_is_not_read_later(
    bot: Bot, alice: NioPerson, room: str, held_back: HeldBack
) -> None:
    event_id = await alice.say(room, "one")
    await until_waiting(bot, 1)
    await alice.client.room_redact(room, event_id)
    while not any(batch.redactions for batch in bot.batches):
        await bot.sync(500)
    held_back.holds = False
    await alice.say(room, "two")
    await bot.until_heard("two")
    assert [each.body for each in bot.heard] == ["two"]


async def test_nobody_elses_messages_are_kept(
    make_bot: Callable[..., Awaitable[Bot]],
    alice: NioPerson,
    make_nio: PersonMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bot = await make_bot(allows=lambda user: user == alice.user_id)
    room = await enter(bot, alice)
    bob = await make_nio("bob")
    await alice.client.room_invite(room, bob.user_id)
    await bob.client.join(room)
    await bob.until(lambda: room in bob.client.rooms and len(bob.client.rooms[room].users) == 3)
    HeldBack(bot, monkeypatch)
    await bob.say(room, "from a stranger")
    await alice.sync()
    await alice.say(room, "from a friend")
    await until_waiting(bot, 1)
    await bot.sync()
    assert bot.client.encryption_counts is not None
    assert bot.client.encryption_counts.waiting == 1
