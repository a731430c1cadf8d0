"""What people say while the service is down is answered when it is back, however much it is."""

from __future__ import annotations

from typing import Final

from tests.servers.model import ScriptedModel
from tests.servers.synapse import Person
from tests.system.conftest import enter
from tests.system.outside import event, judge, line_of, said_line, wait_until_settled
from tests.system.service import MusherProcess

NUMBER: Final = 150
"""More than the 100 events of a room that a sync brings: the timeline is limited, and the rest has to be fetched."""


async def test_messages_of_a_downtime_are_each_settled_once(
    musher: MusherProcess, model: ScriptedModel, alice: Person, bob: Person
) -> None:
    room = await enter(alice, musher)
    await alice.invite(room, bob.user_id)
    await bob.join(room)
    await musher.post_events(event(42))
    await musher.stop()
    for place in range(NUMBER):
        last = await (alice, bob)[place % 2].say(room, f"message {place}")
    await musher.start()
    await wait_until_settled(alice, room, last, musher.user_id)

    verdict = await judge(alice, room, musher.user_id, model)
    assert verdict.lines == [line_of(event(42))]
    await musher.stop()
    (session,) = await musher.command("sessions", room)
    said = [line for entry in session["transcript"] if entry["role"] == "user" for line in entry["text"].split("\n")]
    assert said == [said_line(each) for each in await alice.said(room) if each["sender"] != musher.user_id]
    assert len(said) == NUMBER + 1
    assert session["turns"] == verdict.turns
