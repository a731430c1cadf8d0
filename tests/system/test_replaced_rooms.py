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


async def test_a_turn_goes_along_through_any_number_of_rooms_and_is_answered_once(
    musher: MusherProcess, model: ScriptedModel, alice: Person
) -> None:
    rooms = [await enter(alice, musher)]
    await musher.post_events(event("1"))
    gates = [model.hang() for _ in range(4)]
    asked = await alice.say(rooms[0], "asked in the first room")
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
    assert hung[0].text == f"{frame(event('1'))}<{alice.user_id}>: asked in the first room"
    assert then.messages[: len(hung[0].messages)] == hung[0].messages
    assert then.text == f"{frame(event('2'))}<{alice.user_id}>: and now?"
    (session,) = await musher.command("sessions")
    assert (session["session_id"], session["turns"]) == (newest, 2)
