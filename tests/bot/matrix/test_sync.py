"""One sync is one set of values: what was said, in order, and nothing that was not meant for the bot."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bot.matrix.client import MatrixClient
from bot.matrix.errors import Unreachable
from bot.matrix.model import Credentials, Edit, Identity, Invite, Redaction, SyncBatch
from bot.matrix.timeline import Reader
from tests.bot.matrix.conftest import Opener
from tests.bot.matrix.fake import FakeHomeserver, error, message, synced, truncated
from tests.conftest import PersonMaker
from tests.servers.synapse import Person

POLL_MS = 5_000


@pytest.fixture
async def alice(make_person: PersonMaker) -> Person:
    return await make_person("alice")


async def join_new_room(bot: MatrixClient, alice: Person, **options: object) -> tuple[str, str]:
    """A room in which the bot is, and the token of a sync that has seen it come."""
    room = await alice.create_room(**{"invite": [bot.user_id]} | options)  # type: ignore[arg-type]
    await bot.join(room)
    batch = await bot.sync(None, 0)
    assert batch.joined == (room,)
    return room, batch.next_batch


def bodies(batch: SyncBatch) -> list[str]:
    return [message.body for message in batch.messages]


async def test_what_people_say_arrives_in_order_and_once(bot: MatrixClient, alice: Person) -> None:
    room, since = await join_new_room(bot, alice)
    ids = [await alice.say(room, text) for text in ("one", "two", "three")]
    batch = await bot.sync(since, POLL_MS)
    assert [(m.event_id, m.sender, m.body) for m in batch.messages] == [
        (event_id, alice.user_id, text) for event_id, text in zip(ids, ("one", "two", "three"), strict=True)
    ]
    assert (await bot.sync(batch.next_batch, 0)).messages == ()


async def test_the_bots_own_words_notices_and_reactions_are_no_trigger(bot: MatrixClient, alice: Person) -> None:
    room, since = await join_new_room(bot, alice)
    await bot.send(room, "m.room.message", {"msgtype": "m.text", "body": "mine"}, "t1")
    await alice.send(room, "m.room.message", {"msgtype": "m.notice", "body": "beep"})
    question = await alice.say(room, "a question")
    await alice.react(room, question, "👍")
    await alice.set_state(room, "m.room.topic", {"topic": "sleds"})
    assert bodies(await bot.sync(since, POLL_MS)) == ["a question"]


async def test_edits_and_redactions_come_beside_the_messages(bot: MatrixClient, alice: Person) -> None:
    room, since = await join_new_room(bot, alice)
    kept = await alice.say(room, "helo")
    taken_back = await alice.say(room, "oops")
    await alice.edit(room, kept, "hello")
    await alice.redact(room, taken_back)
    batch = await bot.sync(since, POLL_MS)
    assert bodies(batch) == ["helo"]
    assert batch.edits == (Edit(kept, room, alice.user_id, "hello"),)
    assert batch.redactions == (Redaction(taken_back, room, alice.user_id),)


async def test_a_redaction_in_an_old_room_version_is_seen(bot: MatrixClient, alice: Person) -> None:
    room, since = await join_new_room(bot, alice, room_version="9")
    taken_back = await alice.say(room, "oops")
    since = (await bot.sync(since, POLL_MS)).next_batch
    await alice.redact(room, taken_back)
    assert (await bot.sync(since, POLL_MS)).redactions == (Redaction(taken_back, room, alice.user_id),)


async def test_a_mention_by_display_name_is_recognised(bot: MatrixClient, alice: Person) -> None:
    room, since = await join_new_room(bot, alice)
    await bot._wire.put("profile", bot.user_id, "displayname", body={"displayname": "Rex"})
    await alice.say(room, "rex: what happened?")
    await alice.say(room, "nobody in particular")
    batch = await bot.sync(since, POLL_MS)
    assert [message.mentions_me for message in batch.messages] == [True, False]


async def test_an_invitation_tells_who_invites_and_what_kind_of_room_it_is(bot: MatrixClient, alice: Person) -> None:
    since = (await bot.sync(None, 0)).next_batch
    plain = await alice.create_room([bot.user_id])
    secret = await alice.create_encrypted_room([bot.user_id])
    public = await alice.create_room([bot.user_id], preset="public_chat")
    batch = await bot.sync(since, POLL_MS)
    assert sorted(batch.invites, key=lambda invite: invite.room_id) == sorted(
        [
            Invite(plain, alice.user_id),
            Invite(secret, alice.user_id, encrypted=True),
            Invite(public, alice.user_id, public=True),
        ],
        key=lambda invite: invite.room_id,
    )
    assert (await bot.sync(batch.next_batch, 0)).invites == ()


async def test_an_open_invitation_is_told_again_after_a_restart(
    bot: MatrixClient, alice: Person, account: Credentials, identity: Identity, open_client: Opener
) -> None:
    since = (await bot.sync(None, 0)).next_batch
    room = await alice.create_room([bot.user_id])
    since = (await bot.sync(since, POLL_MS)).next_batch
    restarted = open_client(account)
    await restarted.connect(identity)
    assert (await restarted.sync(since, 0)).invites == (Invite(room, alice.user_id),)
    await restarted.join(room)
    again = open_client(account)
    await again.connect(identity)
    assert (await again.sync(since, 1)).invites == ()


async def test_what_was_said_before_the_invitation_is_not_for_the_bot(bot: MatrixClient, alice: Person) -> None:
    room = await alice.create_room()
    await alice.say(room, "before the invitation")
    await alice.invite(room, bot.user_id)
    await alice.say(room, "before the joining")
    await bot.join(room)
    await alice.say(room, "after the joining")
    with capture_logs() as logs:
        batch = await bot.sync(None, 0)
    assert bodies(batch) == ["before the joining", "after the joining"]
    assert "events_before_invitation_passed_over" in [line["event"] for line in logs]


async def test_the_past_of_a_room_joined_while_running_is_not_for_the_bot(bot: MatrixClient, alice: Person) -> None:
    since = (await bot.sync(None, 0)).next_batch
    room = await alice.create_room(preset="public_chat")
    await alice.say(room, "before the joining")
    await bot.join(room)
    await alice.say(room, "after the joining")
    assert bodies(await bot.sync(since, POLL_MS)) == ["after the joining"]


async def test_a_room_that_the_bot_was_removed_from_is_left_and_forgotten(bot: MatrixClient, alice: Person) -> None:
    room, since = await join_new_room(bot, alice)
    assert bot._rooms.get(room) is not None
    await alice.say(room, "goodbye")
    await alice.kick(room, bot.user_id)
    batch = await bot.sync(since, POLL_MS)
    assert batch.left == (room,)
    assert batch.messages == ()
    assert bot._rooms.get(room) is None


async def test_a_restart_goes_on_where_the_token_says_and_knows_idle_rooms(
    bot: MatrixClient, alice: Person, account: Credentials, identity: Identity, open_client: Opener
) -> None:
    idle, _ = await join_new_room(bot, alice)
    busy = await alice.create_room([bot.user_id])
    await bot.join(busy)
    await alice.say(busy, "old")
    since = (await bot.sync(None, 1)).next_batch
    await alice.say(busy, "new")
    restarted = open_client(account)
    await restarted.connect(identity)
    batch = await restarted.sync(since, POLL_MS)
    assert bodies(batch) == ["new"]
    assert set(batch.joined) == {idle, busy}
    assert restarted._rooms.get(idle) is not None


async def test_of_a_large_room_the_members_who_say_nothing_are_not_sent(
    bot: MatrixClient,
    alice: Person,
    account: Credentials,
    identity: Identity,
    open_client: Opener,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    members = [f"@silent-{number}:localhost" for number in range(20)]
    room, since = await join_new_room(bot, alice, invite=[bot.user_id, *members])
    restarted = open_client(account)
    await restarted.connect(identity)
    answers: list[dict[str, Any]] = []
    get = restarted._wire.get

    async def noted(*path: str, **options: Any) -> dict[str, Any]:
        answers.append(await get(*path, **options))
        return answers[-1]

    monkeypatch.setattr(restarted._wire, "get", noted)
    assert (await restarted.sync(since, 1)).joined == (room,)
    told = answers[0]["rooms"]["join"][room]["state"]["events"]
    named_after = 5  # members whom a homeserver sends along, since clients name a room without a name after them
    assert len([each for each in told if each["type"] == "m.room.member"]) <= named_after + 2


async def test_nobodys_presence_is_asked_for(fake: FakeHomeserver, faked_bot: MatrixClient) -> None:
    fake.routes["/sync"] = lambda _: synced()
    for since in (None, "s2"):
        await faked_bot.sync(since, 0)
    filters = [json.loads(request.query["filter"]) for request in fake.asked("/sync")]
    assert [each["presence"] for each in filters] == [{"not_types": ["*"]}] * 2


async def test_no_news_is_an_empty_batch_with_a_token(bot: MatrixClient) -> None:
    since = (await bot.sync(None, 0)).next_batch
    assert await bot.sync(since, 1) == SyncBatch(next_batch=since)


async def test_a_strange_event_costs_nothing_but_itself(fake: FakeHomeserver, faked_bot: MatrixClient) -> None:
    strange: list[Any] = [
        None,
        7,
        [],
        {},
        {"type": []},
        {"type": "m.room.message"},
        message(2, content=None),
        message(3, sender=[]),
    ]
    fake.routes["/sync"] = lambda _: synced(message(1), *strange, message(4))
    assert bodies(await faked_bot.sync("s1", 0)) == ["message 1", "message 4"]


@pytest.mark.parametrize(
    "strange",
    ["[" * 50_000 + "]" * 50_000, '{"a":' * 50_000 + '"]\\""' + "}" * 50_000, "1" * 5_000],
    ids=["list", "object", "number"],
)
async def test_what_another_server_parses_and_we_do_not_costs_nothing_but_itself(
    strange: str, fake: FakeHomeserver, faked_bot: MatrixClient
) -> None:
    """Anybody can send such content to a device; and how deep is too deep depends on what parses it."""
    there = json.dumps(synced(message(1), message(2, content="HERE"), message(3)) | {"to_device": {"events": ["HERE"]}})
    answer = there.replace('"HERE"', strange)
    fake.routes["/sync"] = lambda _: web.Response(text=answer, content_type="application/json")
    assert bodies(await faked_bot.sync("s1", 0)) == ["message 1", "message 3"]


@pytest.mark.parametrize(
    "rooms",
    [
        None,
        [],
        {"join": [], "invite": 4, "leave": None},
        {"join": {"!a:x": None, "!b:x": {"timeline": [], "state": {"events": 4}}}},
        {"invite": {"!a:x": None, "!b:x": {"invite_state": {"events": [None, {"type": "m.room.member"}]}}}},
    ],
)
async def test_a_strange_part_of_a_sync_costs_nothing_but_itself(
    rooms: object, fake: FakeHomeserver, faked_bot: MatrixClient
) -> None:
    fake.routes["/sync"] = lambda _: {"next_batch": "s2", "rooms": rooms}
    batch = await faked_bot.sync("s1", 0)
    assert (batch.next_batch, batch.messages, batch.invites) == ("s2", (), ())


async def test_a_sync_without_a_token_is_no_answer(fake: FakeHomeserver, faked_bot: MatrixClient) -> None:
    fake.routes["/sync"] = lambda _: {"rooms": {}}
    with pytest.raises(Unreachable, match="next_batch"):
        await faked_bot.sync("s1", 0)


async def test_a_sync_that_breaks_off_can_be_repeated(fake: FakeHomeserver, faked_bot: MatrixClient) -> None:
    fake.routes["/sync"] = truncated
    with pytest.raises(Unreachable):
        await faked_bot.sync("s1", 0)
    fake.routes["/sync"] = lambda _: synced(message(1))
    assert bodies(await faked_bot.sync("s1", 0)) == ["message 1"]


async def test_the_first_sync_asks_for_full_state_until_one_has_succeeded(
    fake: FakeHomeserver, faked_bot: MatrixClient
) -> None:
    fake.routes["/sync"] = lambda _: error(500, "M_UNKNOWN")
    with pytest.raises(Unreachable):
        await faked_bot.sync(None, 30_000)
    fake.routes["/sync"] = lambda _: synced()
    await faked_bot.sync(None, 30_000)
    await faked_bot.sync("s2", 30_000)
    queries = [request.query for request in fake.asked("/sync")]
    assert [query.get("full_state") for query in queries] == ["true", "true", None]
    assert [query.get("since") for query in queries] == [None, None, "s2"]


async def test_an_event_that_breaks_its_reader_costs_no_other_and_the_room_is_told(
    fake: FakeHomeserver, faked_bot: MatrixClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Reader.read

    def breaks(reader: Reader, event: dict[str, Any]) -> Any:
        if event["event_id"] == "$message-1":
            raise MemoryError
        return read(reader, event)

    monkeypatch.setattr(Reader, "read", breaks)
    answer = synced(message(1), message(2))
    answer["rooms"]["join"]["!other:fake"] = {"timeline": {"events": [message(3)]}}
    fake.routes["/sync"] = lambda _: answer
    with capture_logs() as logs:
        batch = await faked_bot.sync("s1", 0)
    assert [each.event_id for each in batch.messages] == ["$message-2", "$message-3"]
    assert batch.broken == ("!room:fake",)
    assert [(line["event"], line["id"]) for line in logs if line.get("exc_info")] == [("event_not_read", "$message-1")]
