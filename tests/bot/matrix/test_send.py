"""What the bot does in rooms happens once, is found again, and never puts readable text where it must not be."""

from __future__ import annotations

import pytest

from bot.matrix.client import MatrixClient
from bot.matrix.errors import EncryptedRoom, Forbidden, MatrixError, NotInRoom, Refused, RoomReplaced, Unreachable
from bot.matrix.model import DELIVERY_ID_FIELD
from tests.bot.matrix.fake import FakeHomeserver, error
from tests.conftest import PersonMaker
from tests.servers.synapse import Person


@pytest.fixture
async def alice(make_person: PersonMaker) -> Person:
    return await make_person("alice")


@pytest.fixture
async def room(bot: MatrixClient, alice: Person) -> str:
    """A room with Alice and the bot."""
    room = await alice.create_room([bot.user_id])
    await bot.join(room)
    return room


def text(body: str, **more: object) -> dict[str, object]:
    return {"msgtype": "m.text", "body": body} | more


async def test_a_message_arrives_as_it_was_given(bot: MatrixClient, alice: Person, room: str) -> None:
    content = text("hello é 🐕", **{"m.mentions": {}})
    event_id = await bot.send(room, "m.room.message", content, "t1")
    (event,) = await alice.said(room, bot.user_id)
    assert (event["event_id"], event["content"]) == (event_id, content)


async def test_the_same_transaction_id_sends_once(bot: MatrixClient, alice: Person, room: str) -> None:
    first = await bot.send(room, "m.room.message", text("hello"), "answer/1 of $x")
    assert await bot.send(room, "m.room.message", text("hello again"), "answer/1 of $x") == first
    assert len(await alice.said(room, bot.user_id)) == 1


async def test_a_message_of_its_own_is_found_by_its_delivery(bot: MatrixClient, alice: Person, room: str) -> None:
    await alice.say(room, "mimicry", **{DELIVERY_ID_FIELD: "d1"})
    sent = await bot.send(room, "m.room.message", text("hello", **{DELIVERY_ID_FIELD: "d1"}), "d1")
    for number in range(120):
        await bot.send(room, "m.room.message", text(f"{number}", **{DELIVERY_ID_FIELD: f"e{number}"}), f"e{number}")
    assert await bot.find_own(room, "d1") == sent
    assert await bot.find_own(room, "d2") is None


async def test_somebody_elses_event_with_the_same_mark_is_not_its_own(
    fake: FakeHomeserver, faked_bot: MatrixClient
) -> None:
    """Some homeservers pass over the senders in a filter; and two Mushers that answer one message mark it alike."""
    content = text("hello", **{DELIVERY_ID_FIELD: "d1"})
    others = {"event_id": "$other", "sender": "@other:fake", "content": content}
    fake.routes["/messages"] = lambda _: {"chunk": [others]}
    assert await faked_bot.find_own("!room:fake", "d1") is None
    fake.routes["/messages"] = lambda _: {"chunk": [others, others | {"event_id": "$own", "sender": faked_bot.user_id}]}
    assert await faked_bot.find_own("!room:fake", "d1") == "$own"


async def test_a_strange_history_holds_no_delivery(fake: FakeHomeserver, faked_bot: MatrixClient) -> None:
    fake.routes["/messages"] = lambda _: {
        "chunk": [None, {"event_id": 4}, {"event_id": "$a", "content": []}],
        "end": "e",
    }
    assert await faked_bot.find_own("!room:fake", "d1") is None
    assert len(fake.asked("/messages")) == 2


@pytest.mark.parametrize("synced_first", [True, False])
async def test_nothing_readable_goes_into_an_encrypted_room(
    synced_first: bool, bot: MatrixClient, alice: Person
) -> None:
    room = await alice.create_encrypted_room([bot.user_id])
    await bot.join(room)
    if synced_first:
        await bot.sync(None, 0)
    with pytest.raises(EncryptedRoom, match=room):
        await bot.send(room, "m.room.message", text("secret"), "t1")
    assert await alice.said(room, bot.user_id) == []


@pytest.mark.parametrize("content", [{"algorithm": "m.megolm.v1.aes-sha2"}, {}, {"algorithm": 4}])
async def test_a_room_that_becomes_encrypted_is_seen(
    content: dict[str, object], bot: MatrixClient, alice: Person, room: str
) -> None:
    since = (await bot.sync(None, 0)).next_batch
    await bot.send(room, "m.room.message", text("still readable"), "t1")
    await alice.set_state(room, "m.room.encryption", content)
    await bot.sync(since, 5_000)
    with pytest.raises(EncryptedRoom):
        await bot.send(room, "m.room.message", text("secret"), "t2")


async def test_a_room_without_the_bot_is_told_apart_from_one_where_it_may_not_speak(
    bot: MatrixClient, alice: Person, room: str
) -> None:
    since = (await bot.sync(None, 0)).next_batch
    await alice.set_power_levels(room, events_default=50)
    with pytest.raises(Forbidden, match=room):
        await bot.send(room, "m.room.message", text("hello"), "t1")
    await alice.kick(room, bot.user_id)
    with pytest.raises(NotInRoom, match=room):  # the bot has not heard of it
        await bot.send(room, "m.room.message", text("hello"), "t1")
    await bot.sync(since, 5_000)
    with pytest.raises(NotInRoom, match=room):  # now it has
        await bot.send(room, "m.room.message", text("hello"), "t1")
    with pytest.raises(NotInRoom):
        await bot.typing(room, True)
    with pytest.raises(NotInRoom):
        await bot.find_own(await alice.create_room(), "d1")


async def test_a_room_that_was_replaced_is_told_apart_from_one_where_it_may_not_speak(
    bot: MatrixClient, alice: Person, room: str
) -> None:
    await alice.upgrade_room(room)
    with pytest.raises(RoomReplaced, match=room):
        await bot.send(room, "m.room.message", text("hello"), "t1")


async def test_a_message_that_is_too_large_is_refused_for_good(bot: MatrixClient, room: str) -> None:
    with pytest.raises(Refused) as caught:
        await bot.send(room, "m.room.message", text("x" * 70_000), "t1")
    assert caught.value.errcode == "M_TOO_LARGE"


async def test_a_sent_event_without_an_id_is_in_doubt(fake: FakeHomeserver, faked_bot: MatrixClient) -> None:
    fake.routes["/state/m.room.encryption/"] = lambda _: error(404, "M_NOT_FOUND")
    fake.routes["/send/m.room.message/t1"] = lambda _: {}
    with pytest.raises(Unreachable):
        await faked_bot.send("!room:fake", "m.room.message", text("hello"), "t1")


async def test_an_answer_without_its_list_shows_nothing(fake: FakeHomeserver, faked_bot: MatrixClient) -> None:
    """Neither that what is in doubt has not arrived, nor that the bot is in no room."""
    fake.routes["/messages"] = fake.routes["/joined_rooms"] = lambda _: {}
    fake.routes["/send/m.room.message/t1"] = lambda _: error(403, "M_FORBIDDEN")
    with pytest.raises(Unreachable):
        await faked_bot.find_own("!room:fake", "d1")
    with pytest.raises(Unreachable):
        await faked_bot.send("!room:fake", "m.room.message", text("hello"), "t1")


async def test_nothing_is_sent_while_nobody_can_say_whether_the_room_is_encrypted(
    fake: FakeHomeserver, faked_bot: MatrixClient
) -> None:
    fake.routes["/state/m.room.encryption/"] = lambda _: error(404, "M_UNRECOGNIZED")
    fake.routes["/send/m.room.message/t1"] = lambda _: {"event_id": "$a"}
    with pytest.raises(MatrixError):
        await faked_bot.send("!room:fake", "m.room.message", text("hello"), "t1")
    assert fake.asked("/t1") == []


async def test_typing_is_seen_and_ends(bot: MatrixClient, alice: Person, room: str) -> None:
    await bot.typing(room, True)
    await alice.wait_for_typing(room, bot.user_id)
    await bot.typing(room, False)
    await alice.wait_for_typing(room, bot.user_id, typing=False)


async def test_an_invitation_is_accepted_declined_and_forgotten(bot: MatrixClient, alice: Person) -> None:
    room = await alice.create_room([bot.user_id])
    await bot.leave(room)
    with pytest.raises(Forbidden):
        await bot.join(room)
    await alice.invite(room, bot.user_id)
    await bot.join(room)
    await bot.join(room)
    await bot.leave(room)
    await bot.forget_room(room)
    assert (await alice.state(room, "m.room.member", bot.user_id))["membership"] == "leave"


async def test_leaving_where_the_bot_never_was_is_told(bot: MatrixClient, alice: Person) -> None:
    room = await alice.create_room()
    for nowhere in (room, "!nowhere:localhost"):
        with pytest.raises(NotInRoom):
            await bot.leave(nowhere)


@pytest.mark.parametrize("synced_first", [True, False])
async def test_a_room_that_strangers_may_enter_or_read_is_public(
    synced_first: bool, bot: MatrixClient, alice: Person
) -> None:
    private = await alice.create_room([bot.user_id])
    public = await alice.create_room([bot.user_id], preset="public_chat")
    readable = await alice.create_room([bot.user_id])
    await alice.set_state(readable, "m.room.history_visibility", {"history_visibility": "world_readable"})
    for room in (private, public, readable):
        await bot.join(room)
    if synced_first:
        await bot.sync(None, 0)
    assert [await bot.is_public(room) for room in (private, public, readable)] == [False, True, True]


async def test_whether_an_unknown_room_is_public_is_not_guessed(bot: MatrixClient, alice: Person) -> None:
    room = await alice.create_room()
    with pytest.raises(NotInRoom):
        await bot.is_public(room)
