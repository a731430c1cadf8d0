"""Deliveries in doubt for longer than homeservers remember transaction ids: found in the room, or sent if absent."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from bot.demo.homeserver import Homeserver
from crdt import Store
from tests.servers.fault_proxy import FaultProxy
from tests.servers.faults import LOST_ANSWER, RESET, Call, Match, to
from tests.servers.model import ScriptedModel
from tests.servers.synapse import Person
from tests.system.conftest import MusherMaker, enter
from tests.system.outside import answered, judge
from tests.system.service import MusherProcess

AGE_S = 13 * 3600
LOGGED_IN_AT = "matrix_logged_in_at"
NEWER = 101
"""Of the bot's own events, after the one that is looked for: more than a page."""


@pytest.fixture
async def proxy(synapse: Homeserver) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(synapse.url) as between:
        yield between


async def age(musher: MusherProcess) -> int:
    """Make the login and the open deliveries of a service that is down older; returns how many deliveries those are."""
    async with Store.open(musher.database) as store:
        logged_in_at = await store.read_setting(LOGGED_IN_AT)
        assert logged_in_at is not None
        await store.write_settings({LOGGED_IN_AT: str(float(logged_in_at) - AGE_S)})
        deliveries = await store.due_deliveries()
        await store._database.write(
            lambda connection: connection.execute(
                "UPDATE outbox SET first_attempt_at = first_attempt_at - ?1, checksum = row_checksum("
                "delivery_id, session_id, event_type, content, attempts, first_attempt_at - ?1) WHERE outcome IS NULL",
                (AGE_S,),
            )
        )
    return len(deliveries)


def sends(room: str) -> Match:
    return to(f"/rooms/{re.escape(room)}/send/", "PUT")


async def test_what_arrived_is_found_behind_a_page_of_newer_events_and_what_did_not_is_sent(
    make_musher: MusherMaker, proxy: FaultProxy, synapse: Homeserver, model: ScriptedModel, alice: Person
) -> None:
    musher = await make_musher(homeserver=proxy.url)
    await musher.start()
    arrived, absent = await enter(alice, musher), await enter(alice, musher)
    rules = [await proxy.begin(LOST_ANSWER, only=sends(arrived)), await proxy.begin(RESET, only=sends(absent))]
    asked = {room: await alice.say(room, f"a question in {room}") for room in (arrived, absent)}
    for room in asked:
        await proxy.wait_for_calls(sends(room))
    await alice.wait_for_replies_to(arrived, asked[arrived], musher.user_id)
    await musher.kill()
    for rule in rules:
        await proxy.end(rule)
    assert await age(musher) == 2
    async with Person.on(synapse, musher.user_id[1:].partition(":")[0]) as itself:
        for number in range(NEWER):
            await itself.send(arrived, "m.reaction", {"number": number})
    before: list[Call] = list(proxy.calls)
    await musher.start()
    await alice.wait_for_replies_to(absent, asked[absent], musher.user_id)
    await musher.wait_for_log("delivered", 2)

    since = proxy.calls[len(before) :]
    assert not [call for call in since if sends(arrived)(call)]
    assert len([call for call in since if sends(absent)(call)]) == 1
    for room, question in asked.items():
        assert [answered(each) for each in await alice.said(room, musher.user_id)] == [question]
        await judge(alice, room, musher.user_id, model)
