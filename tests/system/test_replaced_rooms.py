"""Rooms that are replaced again and again while the model works: one reply, in the newest of them."""

from __future__ import annotations

from tests.servers.model import ScriptedModel
from tests.servers.synapse import Person
from tests.system.conftest import enter
from tests.system.outside import answered, event, frame
from tests.system.service import MusherProcess


async def replace(person: Person, room: str, musher: MusherProcess) -> str:
    """Replace a room, and wait until the service has joined the new one."""
    new_room = await person.upgrade_room(room)
    await person.invite(new_room, musher.user_id)
    await person.wait_for_membership(new_room, musher.user_id)
    return new_room


def in_thread(root: str) -> dict[str, object]:
    return {"m.relates_to": {"rel_type": "m.thread", "event_id": root}}


async def test_a_turn_goes_along_through_any_number_of_rooms_and_is_answered_once(
    musher: MusherProcess, model: ScriptedModel, alice: Person
) -> None:
    rooms = [await enter(alice, musher)]
    await musher.post_events(event("1"))
    gates = [model.hang() for _ in range(4)]
    root = await alice.send(rooms[0], "m.room.message", {"msgtype": "m.notice", "body": "a root"})
    asked = await alice.say(rooms[0], "asked in a thread of the first room", **in_thread(root))
    await model.wait_for_requests(1)
    for requests in (2, 3, 4):
        rooms.append(await replace(alice, rooms[-1], musher))
        await model.wait_for_requests(requests)
    for gate in gates:
        gate.set()
    newest = rooms[-1]
    await alice.wait_for_replies_to(newest, asked, musher.user_id)
    await musher.post_events(event("2"))
    asked_then = await alice.say(newest, "and now?")
    await alice.wait_for_replies_to(newest, asked_then, musher.user_id)

    replies = [each for room in rooms for each in await alice.said(room, musher.user_id)]
    assert [(each["content"]["msgtype"], answered(each)) for each in replies] == [
        ("m.text", asked),
        ("m.text", asked_then),
    ]
    *hung, then = model.requests
    assert all(request.messages == hung[0].messages for request in hung)
    assert hung[0].text == f"{frame(event('1'))}<{alice.user_id}>: asked in a thread of the first room"
    assert then.messages[: len(hung[0].messages)] == hung[0].messages
    assert then.text == f"{frame(event('2'))}<{alice.user_id}>: and now?"
    (session,) = await musher.command("sessions")
    assert (session["session_id"], session["turns"]) == (newest, 2)


async def test_a_reply_that_comes_after_its_room_was_closed_is_said_in_the_new_room(
    musher: MusherProcess, model: ScriptedModel, alice: Person
) -> None:
    room = await enter(alice, musher)
    gate = model.hang()
    root = await alice.say(room, "a root")
    asked = await alice.say(room, "asked", **in_thread(root))
    await model.wait_for_requests(1)
    new_room = await alice.upgrade_room(room)
    gate.set()
    await musher.wait_for_log("turn_completed")
    await alice.invite(new_room, musher.user_id)
    for question in (root, asked):
        await alice.wait_for_replies_to(new_room, question, musher.user_id)
    assert await alice.said(room, musher.user_id) == []
    assert [answered(each) for each in await alice.said(new_room, musher.user_id)] == [root, asked]


async def test_after_an_upgrade_that_is_undone_the_conversation_goes_on_in_the_old_room(
    musher: MusherProcess, model: ScriptedModel, alice: Person
) -> None:
    room = await enter(alice, musher)
    await musher.post_events(event("1"))
    asked = await alice.say(room, "asked before")
    await alice.wait_for_replies_to(room, asked, musher.user_id)
    new_room = await replace(alice, room, musher)
    await musher.wait_for_log("room_upgraded")
    await alice.kick(new_room, musher.user_id)
    await musher.wait_for_log("room_upgrade_undone")
    await alice.set_power_levels(room, events_default=0)
    await musher.post_events(event("2"))
    asked_then = await alice.say(room, "and now?")
    await alice.wait_for_replies_to(room, asked_then, musher.user_id)
    before, then = model.requests
    assert then.messages[: len(before.messages)] == before.messages
    assert then.text == f"{frame(event('2'))}<{alice.user_id}>: and now?"
