"""A room talks with the model that knows the pipeline: what people and the model see of it."""

from __future__ import annotations

import asyncio
import re
import signal
from itertools import pairwise

from tests.servers.model import Reply, ScriptedModel, Status
from tests.servers.synapse import Person
from tests.system.conftest import MusherMaker, enter
from tests.system.outside import answered, event, frame
from tests.system.service import MusherProcess


async def ask(person: Person, room: str, text: str, musher: MusherProcess) -> str:
    """Say something, wait for the reply to it, and return the reply's text."""
    said = await person.say(room, text)
    (reply,) = await person.wait_for_replies_to(room, said, musher.user_id)
    return str(reply["content"]["body"])


async def test_each_room_is_told_every_event_once_and_in_order(
    make_musher: MusherMaker, model: ScriptedModel, alice: Person
) -> None:
    musher = await make_musher()
    await musher.start()
    room = await enter(alice, musher)
    first, second, third, fourth = events = [event(story) for story in (41, 42, 43, 44)]

    await musher.post_events(first, second, third)
    assert await ask(alice, room, "what happened?", musher) == "reply 1"
    assert await ask(alice, room, "and now?", musher) == "reply 2"
    await musher.post_events(fourth)
    assert await ask(alice, room, "and\nnow?", musher) == "reply 3"
    other_room = await enter(alice, musher)
    assert await ask(alice, other_room, "what did I miss?", musher) == "reply 4"
    await musher.stop(signal.SIGINT)
    await musher.start()
    assert await ask(alice, room, "are you back?", musher) == "reply 5"

    said = f"<{alice.user_id}>: "
    assert [request.text for request in model.requests] == [
        f"{frame(first, second, third)}{said}what happened?",
        f"{said}and now?",
        f"{frame(fourth)}{said}and\n  now?",
        f"{frame(*events)}{said}what did I miss?",
        f"{said}are you back?",
    ]
    in_room = [request.messages for request in model.requests if request.number != 4]
    for earlier, later in pairwise(in_room):
        assert later[: len(earlier)] == earlier
        assert len(later) == len(earlier) + 2
    assert [message["role"] for message in in_room[-1]] == ["system", *["user", "assistant"] * 3, "user"]
    assert len(await alice.said(room, musher.user_id)) == 4
    assert len(await alice.said(other_room, musher.user_id)) == 1
    assert len({line["device"] for line in musher.logged("logged_in")}) == 1


async def test_a_reply_names_its_message_and_its_asker_and_shows_its_markdown(
    musher: MusherProcess, model: ScriptedModel, alice: Person, room: str
) -> None:
    model.script(Reply("**Two** stories, @room:\n\n- 41\n- 42 <script>alert(1)</script>"))
    asked = await alice.say(room, "what happened?")
    (reply,) = await alice.wait_for_replies_to(room, asked, musher.user_id)
    content = reply["content"]
    assert content["msgtype"] == "m.text"
    assert content["m.relates_to"] == {"m.in_reply_to": {"event_id": asked}}
    assert content["m.mentions"] == {"user_ids": [alice.user_id]}
    assert content["format"] == "org.matrix.custom.html"
    assert "<strong>Two</strong>" in content["formatted_body"]
    assert "<li>41</li>" in content["formatted_body"]
    assert "<script" not in content["formatted_body"]


async def test_a_question_in_a_thread_is_answered_in_that_thread(
    musher: MusherProcess, model: ScriptedModel, alice: Person, room: str
) -> None:
    root = await alice.say(room, "a root")
    await alice.wait_for_replies_to(room, root, musher.user_id)
    asked = await alice.say(room, "in the thread", **{"m.relates_to": {"rel_type": "m.thread", "event_id": root}})
    (reply,) = await alice.wait_for_replies_to(room, asked, musher.user_id)
    relation = reply["content"]["m.relates_to"]
    assert (relation["rel_type"], relation["event_id"]) == ("m.thread", root)
    assert not relation.get("is_falling_back")


async def test_a_reply_of_200_kb_arrives_whole_and_in_order(
    musher: MusherProcess, model: ScriptedModel, alice: Person, room: str
) -> None:
    paragraphs = [f"Paragraph {number} " + "tells of the kennel. " * 20 for number in range(500)]
    long = "\n\n".join(paragraphs)
    assert len(long) > 200_000
    model.script(Reply(long))
    asked = await alice.say(room, "tell me all")
    await alice.wait_for_replies_to(room, asked, musher.user_id)
    assert await ask(alice, room, "thank you", musher) == "reply 2"
    *parts, _ = await alice.said(room, musher.user_id)
    assert len(parts) > 1
    assert "\n\n".join(part["content"]["body"] for part in parts).split() == long.split()
    assert [answered(part) for part in parts] == [asked] + [None] * (len(parts) - 1)
    assert [part["content"]["m.mentions"] for part in parts[1:]] == [{}] * (len(parts) - 1)
    assert re.findall(r"Paragraph \d+", model.requests[1].messages[2]["content"])[-1] == "Paragraph 499"


async def test_notices_edits_and_the_bots_own_messages_start_nothing(
    musher: MusherProcess, model: ScriptedModel, alice: Person, room: str
) -> None:
    asked = await alice.say(room, "one")
    await alice.wait_for_replies_to(room, asked, musher.user_id)
    await alice.send(room, "m.room.message", {"msgtype": "m.notice", "body": "a program says this"})
    await alice.edit(room, asked, "one, but better")
    await alice.react(room, asked, "+1")
    assert await ask(alice, room, "two", musher) == "reply 2"
    assert len(model.requests) == 2
    assert model.requests[1].text == f"<{alice.user_id}>: two"
    assert len(await alice.said(room, musher.user_id)) == 2


async def test_what_is_said_while_the_model_works_is_answered_together(
    musher: MusherProcess, model: ScriptedModel, alice: Person, bob: Person, room: str
) -> None:
    await alice.invite(room, bob.user_id)
    await bob.join(room)
    gate = model.hang()
    await alice.say(room, "first")
    await model.wait_for_requests(1)
    await alice.say(room, "second")
    newest = await bob.say(room, "third")
    await musher.wait_for_logs(lambda: sum(line["new"] for line in musher.logged("messages_admitted")) == 3)
    gate.set()
    (reply,) = await alice.wait_for_replies_to(room, newest, musher.user_id)
    assert reply["content"]["m.mentions"] == {"user_ids": [bob.user_id]}
    assert model.requests[1].text == f"<{alice.user_id}>: second\n<{bob.user_id}>: third"
    assert len(await alice.said(room, musher.user_id)) == 2


async def test_the_room_sees_typing_while_the_model_works(
    musher: MusherProcess, model: ScriptedModel, alice: Person, room: str
) -> None:
    gate = model.hang()
    asked = await alice.say(room, "think hard")
    await alice.wait_for_typing(room, musher.user_id)
    gate.set()
    await alice.wait_for_replies_to(room, asked, musher.user_id)
    await alice.wait_for_typing(room, musher.user_id, typing=False)


async def test_a_model_that_hangs_in_one_room_does_not_hold_up_another(
    musher: MusherProcess, model: ScriptedModel, alice: Person, room: str
) -> None:
    gate = model.hang()
    asked = await alice.say(room, "think hard")
    await model.wait_for_requests(1)
    other_room = await enter(alice, musher)
    assert await ask(alice, other_room, "quick?", musher) == "reply 2"
    gate.set()
    await alice.wait_for_replies_to(room, asked, musher.user_id)


async def test_a_message_that_was_edited_or_taken_back_in_time_is_told_as_it_is_then(
    musher: MusherProcess, model: ScriptedModel, alice: Person, room: str
) -> None:
    gate = model.hang()
    frozen = await alice.say(room, "first")
    await model.wait_for_requests(1)
    taken_back = await alice.say(room, "a secret slip")
    edited = await alice.say(room, "secnd")
    await alice.edit(room, frozen, "first, too late")
    await alice.edit(room, edited, "second")
    await alice.redact(room, taken_back)
    last = await alice.say(room, "third")
    await musher.wait_for_logs(lambda: sum(line["new"] for line in musher.logged("messages_admitted")) == 4)
    gate.set()
    await alice.wait_for_replies_to(room, last, musher.user_id)
    _, told_first, _, told_then = (message["content"] for message in model.requests[1].messages)
    assert told_first == f"<{alice.user_id}>: first"
    assert told_then == f"<{alice.user_id}>: second\n<{alice.user_id}>: third"
    assert [answered(reply) for reply in await alice.said(room, musher.user_id)] == [frozen, last]


async def test_where_only_mentions_are_answered_all_else_becomes_context(
    make_musher: MusherMaker, model: ScriptedModel, alice: Person
) -> None:
    musher = await make_musher({"matrix": {"respond_to": "mentions"}})
    await musher.start()
    room = await enter(alice, musher)
    await musher.post_events(event(42))
    await alice.say(room, "the build looks slow")
    await alice.say(room, "since Monday")
    asked = await alice.say(room, "what do you think?", **{"m.mentions": {"user_ids": [musher.user_id]}})
    await alice.wait_for_replies_to(room, asked, musher.user_id)
    said = f"<{alice.user_id}>: "
    told = f"{said}the build looks slow\n{said}since Monday\n{said}what do you think?"
    assert [request.text for request in model.requests] == [frame(event(42)) + told]
    assert len(await alice.said(room, musher.user_id)) == 1


async def test_what_a_stranger_says_is_neither_stored_nor_shown(
    make_musher: MusherMaker, model: ScriptedModel, alice: Person, bob: Person
) -> None:
    musher = await make_musher({"matrix": {"allowed_users": [alice.user_id]}})
    await musher.start()
    room = await enter(alice, musher)
    await alice.invite(room, bob.user_id)
    await bob.join(room)
    slip = await bob.say(room, "xyzzy-from-a-stranger")
    await bob.edit(room, slip, "xyzzy-better-put")
    assert await ask(alice, room, "plugh-from-a-friend", musher) == "reply 1"
    await musher.stop()
    stored = b"".join(path.read_bytes() for path in musher.database.parent.iterdir())
    assert b"plugh-from-a-friend" in stored
    assert b"xyzzy" not in stored
    assert "xyzzy" not in str(model.requests)
    log = musher.log_file.read_text()
    assert "xyzzy" not in log
    assert "plugh" not in log
    assert [line["reason"] for line in musher.logged("message_not_answered")] == ["not allowed"]


async def test_an_invitation_of_a_stranger_is_declined(make_musher: MusherMaker, alice: Person, bob: Person) -> None:
    musher = await make_musher({"matrix": {"allowed_users": [alice.user_id]}})
    await musher.start()
    room = await bob.create_room(invite=[musher.user_id])
    await bob.wait_for_membership(room, musher.user_id, "leave")
    assert not await musher.command("sessions")


async def test_a_model_that_fails_for_good_costs_a_notice_and_no_event(
    musher: MusherProcess, model: ScriptedModel, alice: Person, room: str
) -> None:
    await musher.post_events(event(42))
    model.script(Status(400, "no such parameter"))
    asked = await alice.say(room, "what happened?")
    (notice,) = await alice.wait_for_replies_to(room, asked, musher.user_id)
    assert notice["content"]["msgtype"] == "m.notice"
    assert "no such parameter" not in notice["content"]["body"]
    assert await ask(alice, room, "and now?", musher) == "reply 2"
    _, first, failure, second = model.requests[1].messages
    assert first["content"] == f"{frame(event(42))}<{alice.user_id}>: what happened?"
    assert (failure["role"], failure["content"]) == ("assistant", notice["content"]["body"])
    assert second["content"] == f"<{alice.user_id}>: and now?"


async def test_a_stop_while_the_model_hangs_is_prompt_and_loses_nothing(
    musher: MusherProcess, model: ScriptedModel, alice: Person, room: str
) -> None:
    await musher.post_events(event(42))
    model.hang()
    asked = await alice.say(room, "what happened?")
    await model.wait_for_requests(1)
    assert await musher.stop() < 10
    await musher.start()
    await alice.wait_for_replies_to(room, asked, musher.user_id)
    first, second = model.requests
    assert second.messages == first.messages
    assert second.text == f"{frame(event(42))}<{alice.user_id}>: what happened?"
    assert len(await alice.said(room, musher.user_id)) == 1


async def test_a_stop_ends_a_start_that_waits_for_its_homeserver(make_musher: MusherMaker) -> None:
    reached = asyncio.Event()
    connections: list[asyncio.StreamWriter] = []

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        reached.set()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    musher = await make_musher(homeserver=f"http://127.0.0.1:{port}")
    await musher.start(ready=False)
    async with asyncio.timeout(20):
        await reached.wait()
    try:
        await musher.stop()
    finally:
        for connection in connections:
            connection.close()
        silent.close()


async def test_an_encrypted_room_never_sees_a_readable_reply(
    musher: MusherProcess, model: ScriptedModel, alice: Person
) -> None:
    room = await alice.create_encrypted_room(invite=[musher.user_id])
    await alice.wait_for_membership(room, musher.user_id)
    said = await alice.say(room, "a readable question in an encrypted room")
    await alice.wait_for_replies_to(room, said, musher.user_id)
    written = [
        each for each in await alice.messages(room) if each["sender"] == musher.user_id and "state_key" not in each
    ]
    assert [each["type"] for each in written] == ["m.room.encrypted"]


async def test_two_mushers_in_one_room_answer_people_and_not_each_other(
    make_musher: MusherMaker, musher: MusherProcess, model: ScriptedModel, alice: Person, room: str
) -> None:
    other = await make_musher()
    await other.start()
    await alice.invite(room, other.user_id)
    await alice.wait_for_membership(room, other.user_id)
    for question in ("first", "second"):
        asked = await alice.say(room, question)
        for each in (musher, other):
            await alice.wait_for_replies_to(room, asked, each.user_id)
    assert [request.text for request in model.requests] == [
        f"<{alice.user_id}>: {question}" for question in ("first", "first", "second", "second")
    ]
    assert len(await alice.said(room)) == 2 + 4
