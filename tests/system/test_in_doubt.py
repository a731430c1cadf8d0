"""Deliveries that an earlier start has tried to send: found in the room, or sent if absent."""

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

NEWER = 101
"""Of the bot's own events, after the one that is looked for: more than a page."""


@pytest.fixture
async def proxy(synapse: Homeserver) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(synapse.url) as between:
        yield between


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
    async with Store.open(musher.database) as store:
        assert [delivery.attempts > 0 for delivery in await store.due_deliveries()] == [True, True]
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
