"""Both directions with another client, and nothing readable where it must not be."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bot.demo.homeserver import Homeserver
from bot.matrix import UnknownEncryption, Unreachable, reply_contents
from bot.matrix.model import DELIVERY_ID_FIELD
from tests.bot.matrix.e2ee.conftest import Bot, PersonMaker, enter
from tests.bot.matrix.e2ee.nio_person import ALGORITHM, NioPerson


async def test_a_message_is_read_and_answered(bot: Bot, alice: NioPerson, room: str) -> None:
    await alice.say(room, "what is new?")
    heard = await bot.until_heard("what is new?")
    assert (heard.room_id, heard.sender) == (room, alice.user_id)
    sent = await bot.say(room, "nothing much", **{DELIVERY_ID_FIELD: "d1"})
    assert (await alice.until_heard("nothing much")).decrypted
    assert await bot.client.find_own(room, "d1") == sent
    assert "nothing much" not in json.dumps(await alice.history(room))


async def test_what_another_musher_says_is_not_even_decrypted(
    bot: Bot, alice: NioPerson, room: str, make_bot: Callable[..., Awaitable[Bot]]
) -> None:
    other = await make_bot()
    await alice.client.room_invite(room, other.user_id)
    await other.sync(500)
    await other.say(room, "what do you mean?", **{DELIVERY_ID_FIELD: "d1"})
    await alice.until_heard("what do you mean?")
    await alice.say(room, "you two!")
    await bot.until_heard("you two!")
    assert [each.body for each in bot.heard] == ["you two!"]
    assert bot.encryption.counts.decrypted == 1


async def test_a_redaction_that_is_encrypted_takes_nothing_back(bot: Bot, alice: NioPerson, room: str) -> None:
    """No homeserver has seen whether its sender may do that."""
    taken = {"redacts": "$of-somebody-else"}
    await alice.client.room_send(room, "m.room.redaction", taken, ignore_unverified_devices=True)
    await alice.say(room, "still here?")
    await bot.until_heard("still here?")
    assert [batch.redactions for batch in bot.batches if batch.redactions] == []


async def test_both_directions_work_after_a_restart_and_messages_from_in_between_arrive(
    bot: Bot, alice: NioPerson, room: str
) -> None:
    await alice.say(room, "before")
    await bot.until_heard("before")
    identity = bot.identity
    await bot.stop()
    for number in range(3):
        await alice.say(room, f"while it was down {number}")
    assert await bot.start() == identity
    await bot.until_heard("while it was down 2")
    assert [each.body for each in bot.heard] == ["before", *(f"while it was down {number}" for number in range(3))]
    await bot.say(room, "here again")
    await alice.until_heard("here again")


async def test_a_step_that_is_repeated_gives_the_same_messages(bot: Bot, alice: NioPerson, room: str) -> None:
    since = bot.since
    await alice.say(room, "once")
    await bot.until_heard("once")
    await bot.stop()
    bot.since, bot.heard = since, []
    await bot.start()
    await bot.until_heard("once")


async def test_the_same_transaction_id_arrives_once_even_after_a_restart(bot: Bot, alice: NioPerson, room: str) -> None:
    content = {"msgtype": "m.text", "body": "once"}
    first = await bot.client.send(room, "m.room.message", content, "t1")
    await bot.start()
    assert await bot.client.send(room, "m.room.message", content, "t1") == first


async def test_a_reply_of_200_kb_arrives_whole_and_in_order(bot: Bot, alice: NioPerson, room: str) -> None:
    reply = "\n\n".join(f"Paragraph {number}: {'Text und 文字 🐕. ' * 40}" for number in range(200))[:200_000]
    parts = reply_contents(reply, reply_to="$x", asker=None, thread_root=None)
    for number, part in enumerate(parts):
        await bot.client.send(room, "m.room.message", part | {DELIVERY_ID_FIELD: "d" * 60}, f"part-{number}")
    bodies = [str(part["body"]) for part in parts]
    await alice.until(lambda: len(alice.heard) >= len(parts))
    assert [each.body for each in alice.heard] == bodies
    assert "".join("".join(bodies).split()) == "".join(reply.split())


async def test_a_room_that_was_encrypted_a_moment_ago_gets_nothing_readable(bot: Bot, alice: NioPerson) -> None:
    room = await enter(bot, alice, encrypted=False)
    await bot.say(room, "readable")
    await alice.client.room_put_state(room, "m.room.encryption", ALGORITHM)
    await bot.say(room, "secret")  # without a sync that could have told
    await alice.until_heard("secret")
    assert "secret" not in json.dumps(await alice.history(room))


async def test_a_room_is_written_to_encrypted_right_after_joining_and_after_a_start_without_a_sync(
    bot: Bot, alice: NioPerson
) -> None:
    room = await alice.create_room(bot.user_id)
    await bot.client.join(room)
    await bot.say(room, "first words")
    await alice.until_heard("first words")
    await bot.start()
    await bot.say(room, "second words")
    await alice.until_heard("second words")
    assert {each["type"] for each in await alice.history(room) if each["sender"] == bot.user_id} == {
        "m.room.member",
        "m.room.encrypted",
    }


@pytest.mark.parametrize("junk", [{}, {"algorithm": "rot13"}, {"algorithm": ["m.megolm.v1.aes-sha2"]}], ids=str)
async def test_a_room_stays_encrypted_as_it_was_whatever_is_put_there_later(
    bot: Bot, alice: NioPerson, room: str, junk: dict[str, Any]
) -> None:
    await alice.client.room_put_state(room, "m.room.encryption", junk)
    await bot.sync()
    await bot.say(room, "secret")
    await alice.until_heard("secret")
    await bot.start()
    await bot.say(room, "secret without a sync")
    await bot.sync()
    await bot.say(room, "secret after a sync")
    await alice.until_heard("secret after a sync")
    assert "secret" not in json.dumps(await alice.history(room))


async def test_a_room_stays_encrypted_even_if_the_server_says_otherwise(
    bot: Bot, alice: NioPerson, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bot.start()

    async def nothing(*_: object) -> None:
        return None

    monkeypatch.setattr("bot.matrix.room_rules.room_state", nothing)
    await bot.say(room, "secret")
    await alice.until_heard("secret")
    assert "secret" not in json.dumps(await alice.history(room))


async def test_nothing_is_sent_into_a_room_that_is_encrypted_in_an_unknown_way_until_that_is_put_right(
    bot: Bot, alice: NioPerson
) -> None:
    room = await enter(bot, alice, encrypted=False)
    await alice.client.room_put_state(room, "m.room.encryption", {"algorithm": "rot13"})
    for _ in range(2):
        with pytest.raises(UnknownEncryption, match="rot13"):
            await bot.say(room, "secret")
        await bot.sync()
    await alice.client.room_put_state(room, "m.room.encryption", ALGORITHM)
    await bot.sync()
    await bot.say(room, "secret")
    await alice.until_heard("secret")
    assert "secret" not in json.dumps(await alice.history(room))


async def test_nothing_is_sent_when_the_key_can_not_be_shared(
    bot: Bot, alice: NioPerson, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = bot.encryption._devices
    share = devices.send

    async def fails(*_: object) -> None:
        raise Unreachable("http://nowhere", "no answer")

    monkeypatch.setattr(devices, "send", fails)
    with pytest.raises(Unreachable):
        await bot.client.send(room, "m.room.message", {"msgtype": "m.text", "body": "in the end"}, "t1")
    monkeypatch.setattr(devices, "send", share)
    await bot.client.send(room, "m.room.message", {"msgtype": "m.text", "body": "in the end"}, "t1")
    await alice.until_heard("in the end")


async def test_devices_that_come_later_read_what_is_said_from_then_on(
    bot: Bot, alice: NioPerson, room: str, make_nio: PersonMaker, synapse: Homeserver, tmp_path: Any
) -> None:
    await bot.say(room, "only for Alice's first device")
    bob = await make_nio("bob")
    await alice.client.room_invite(room, bob.user_id)
    await bob.client.join(room)
    async with NioPerson.on(synapse, alice.user_id[1:].partition(":")[0], tmp_path / "second") as second:
        await bot.sync()
        await bot.say(room, "for all")
        for each in (alice, second, bob):
            await each.until_heard("for all")


async def test_whoever_has_left_gets_a_new_key_no_more(
    bot: Bot, alice: NioPerson, room: str, make_nio: PersonMaker
) -> None:
    bob = await make_nio("bob")
    await alice.client.room_invite(room, bob.user_id)
    await bob.client.join(room)
    await bot.sync()
    await bot.say(room, "for both")
    first = await alice.until_heard("for both")
    await alice.client.room_kick(room, bob.user_id)
    await bot.sync()
    await bot.say(room, "for Alice")
    assert (await alice.until_heard("for Alice")).session_id != first.session_id


@pytest.mark.parametrize(("asked", "keys"), [(2, 3), (1, 5), (0, 5), (-1, 5), ("2", 1), (True, 1), (None, 1)])
async def test_the_key_is_changed_as_often_as_the_room_asks(
    bot: Bot, alice: NioPerson, asked: object, keys: int
) -> None:
    room = await alice.create_room(bot.user_id, encrypted=False)
    await alice.client.room_put_state(room, "m.room.encryption", ALGORITHM | {"rotation_period_msgs": asked})
    await bot.client.join(room)
    for number in range(5):
        await bot.say(room, str(number))
    await alice.until_heard("4")
    assert [each.body for each in alice.heard] == [str(number) for number in range(5)]
    assert len({each.session_id for each in alice.heard}) == keys


async def test_a_message_with_the_key_of_somebody_else_is_not_believed(
    bot: Bot, alice: NioPerson, room: str, make_nio: PersonMaker
) -> None:
    mallory = await make_nio("mallory")
    await alice.client.room_invite(room, mallory.user_id)
    await mallory.client.join(room)
    await mallory.until(lambda: room in mallory.client.rooms and len(mallory.client.rooms[room].users) == 3)
    await mallory.say(room, "I am Mallory")
    await bot.until_heard("I am Mallory")
    (event,) = [
        each for each in await alice.history(room) if each["sender"] == mallory.user_id and "state_key" not in each
    ]
    forged = {**event, "sender": alice.user_id, "event_id": "$forged"}
    bot.encryption._machine.olm.message_index_store.clear()
    assert await bot.encryption.read(room, forged) is None
    assert await bot.encryption.read(room, event) is not None
    repeated = {**event, "event_id": "$repeated"}
    assert await bot.encryption.read(room, repeated) is None
    elsewhere = await enter(bot, alice)
    assert await bot.encryption.read(elsewhere, {**event, "event_id": "$elsewhere"}) is None
