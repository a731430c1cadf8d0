"""A real homeserver behind a proxy that fails: nothing lost, nothing twice, gentle meanwhile, and back at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

import pytest

from bot.demo.homeserver import Homeserver
from tests.servers.fault_proxy import FaultProxy
from tests.servers.faults import (
    DOWN,
    HALF_AN_ANSWER,
    HANG,
    HTML,
    INTERNAL_ERROR,
    LOST_ANSWER,
    NONSENSE,
    RESET,
    SENDS,
    SOFT_LOGOUT,
    SWALLOW,
    SYNCS,
    Fault,
    to,
    too_many,
)
from tests.servers.model import ScriptedModel, text_of
from tests.servers.synapse import PASSWORD, Person
from tests.soak.run import log_out_everywhere
from tests.system.conftest import MusherMaker, enter
from tests.system.outside import answered, event, frame, judge, line_of, wait_until_settled
from tests.system.service import MusherProcess

FAULT_S: Final = 6.0
RECOVERY_S: Final = 5.0
RATE: Final = 2.0
"""Requests a second that the homeserver may be asked during a fault, less than that."""
FAULTS: Final[tuple[tuple[Fault, ...], ...]] = (
    (DOWN, INTERNAL_ERROR),
    (RESET, too_many(2, in_header=True)),
    (NONSENSE, too_many(2, in_header=False)),
    (HANG, SWALLOW),
)


@dataclass(eq=False)
class Line:
    """One service that reaches the homeserver through a proxy, and its room."""

    proxy: FaultProxy
    musher: MusherProcess
    alice: Person
    room: str

    async def ask(self, text: str, within: float = 20.0) -> float:
        """Ask, wait for the one reply, and return when the homeserver got it (Unix seconds)."""
        asked = await self.alice.say(self.room, text)
        return await self.answered(asked, within)

    async def answered(self, asked: str, within: float = 20.0) -> float:
        (reply,) = await self.alice.wait_for_replies_to(self.room, asked, self.musher.user_id, timeout=within)
        return float(reply["origin_server_ts"]) / 1000

    def devices(self) -> set[str]:
        """All devices that the service has logged in as."""
        return {line["device"] for line in self.musher.logged("logged_in")}


Layer = Callable[[], Awaitable[Line]]


@pytest.fixture
async def lay(synapse: Homeserver, make_musher: MusherMaker, alice: Person) -> AsyncIterator[Layer]:
    """Lays lines: each with a proxy, a service and a room of its own."""
    async with AsyncExitStack() as proxies:

        async def one() -> Line:
            proxy = await proxies.enter_async_context(FaultProxy(synapse.url))
            musher = await make_musher(homeserver=proxy.url)
            await musher.start()
            return Line(proxy, musher, alice, await enter(alice, musher))

        yield one


@pytest.fixture
async def line(lay: Layer) -> Line:
    return await lay()


@dataclass(frozen=True, slots=True)
class Suffered:
    """What a fault was like: requests a second while it lasted, and seconds from its end to the answer."""

    rate: float
    recovery: float


async def suffer(line: Line, faults: Sequence[Fault]) -> dict[str, Suffered]:
    """Meet faults one after the other, each with a message and an event under way."""
    suffered = {}
    for fault in faults:
        await line.ask(f"before {fault.name}")
        rule = await line.proxy.begin(fault)
        await line.musher.post_events(event(fault.name))
        asked = await line.alice.say(line.room, f"during {fault.name}")
        await rule.lasts(FAULT_S)
        rate, ended = line.proxy.rate(rule), time.time()
        await line.proxy.end(rule)
        suffered[fault.name] = Suffered(rate, await line.answered(asked) - ended)
    return suffered


async def test_each_fault_is_met_gently_and_its_end_noticed_at_once(
    lay: Layer, model: ScriptedModel, alice: Person
) -> None:
    lines = await asyncio.gather(*(lay() for _ in FAULTS))
    seen: dict[str, Suffered] = {}
    for one in await asyncio.gather(*(suffer(line, faults) for line, faults in zip(lines, FAULTS, strict=True))):
        seen |= one
    assert not {name: one for name, one in seen.items() if one.rate >= RATE or one.recovery > RECOVERY_S}, seen
    for line, faults in zip(lines, FAULTS, strict=True):
        verdict = await judge(alice, line.room, line.musher.user_id, model)
        assert verdict.lines == [line_of(event(fault.name)) for fault in faults]


async def test_a_reply_whose_acknowledgement_is_lost_stands_once_in_the_room(line: Line, model: ScriptedModel) -> None:
    await line.proxy.begin(LOST_ANSWER, only=SENDS, times=1)
    await line.proxy.begin(HALF_AN_ANSWER, only=SENDS, times=1)
    await line.ask("hello")
    first, *more = await line.proxy.wait_for_calls(SENDS, 3)
    assert {call.path for call in more} == {first.path}
    await line.musher.wait_for_log("delivered")
    await judge(line.alice, line.room, line.musher.user_id, model)


async def test_a_busy_room_loses_nothing_of_a_sync_that_leaves_most_of_it_out(
    line: Line, model: ScriptedModel, alice: Person
) -> None:
    await line.ask("before")  # until a sync has brought the room, whatever is said in it belongs to the joining
    async with line.proxy.during(HANG, only=SYNCS):
        for number in range(120):
            last = await alice.say(line.room, f"message {number}")
    await wait_until_settled(alice, line.room, last, line.musher.user_id)
    await judge(alice, line.room, line.musher.user_id, model)
    (backfilled,) = [logged["messages"] for logged in line.musher.logged("backfilled")]
    assert 0 < backfilled <= 20, "the sync brings a hundred, and one that was under way maybe some"


async def test_a_login_that_is_ended_is_made_again_on_the_same_device(
    line: Line, synapse: Homeserver, model: ScriptedModel
) -> None:
    await line.proxy.begin(SOFT_LOGOUT, only=SYNCS, times=1)
    await line.proxy.begin(SOFT_LOGOUT, only=SENDS, times=1)
    await line.ask("before")
    await line.ask("after a soft logout")
    assert len(line.proxy.met(SOFT_LOGOUT.name)) == 2
    await line.proxy.begin(HTML, only=to("/versions$"), times=1)
    await log_out_everywhere(synapse, line.musher.user_id)
    await line.ask("after")
    assert len(line.proxy.met(HTML.name)) == 1
    await line.musher.stop()
    await line.musher.start()
    await line.ask("and after a restart")
    assert len(line.devices()) == 1
    await judge(line.alice, line.room, line.musher.user_id, model)


async def test_a_token_that_is_ended_without_a_password_ends_the_service_with_advice(
    make_musher: MusherMaker, synapse: Homeserver, alice: Person
) -> None:
    musher = await make_musher()
    user = musher.user_id.removeprefix("@").partition(":")[0]
    login = await synapse.login(user, PASSWORD)
    token = {"access_token": login.access_token, "device_id": login.device_id}
    musher.configure({"matrix": {"password": None, **token}})
    await musher.start()
    await enter(alice, musher)
    await log_out_everywhere(synapse, musher.user_id)
    async with asyncio.timeout(30):
        await musher.wait_until_ended()
    await musher.kill()
    said = musher.tail().splitlines()[-1]
    assert "has ended the login" in said
    assert "matrix.access_token" in said
    assert login.access_token not in musher.log_file.read_text()


async def test_a_reply_in_doubt_is_looked_for_where_its_transaction_id_is_forgotten(
    line: Line, synapse: Homeserver, model: ScriptedModel
) -> None:
    await line.musher.stop()
    await line.musher.start(pause_at="sent")
    asked = await line.alice.say(line.room, "hello")
    await line.musher.wait_until_paused("sent")
    await line.musher.kill()
    await log_out_everywhere(synapse, line.musher.user_id)  # the homeserver forgets the login's transaction ids
    line.musher.resume("sent")
    await line.musher.start()
    await line.answered(asked)
    await line.ask("still there?")
    assert [call.method for call in line.proxy.calls if to("/messages$")(call)] == ["GET"]
    await judge(line.alice, line.room, line.musher.user_id, model)


async def test_being_put_out_of_a_room_ends_its_work_and_an_invitation_begins_it_anew(
    line: Line, model: ScriptedModel, alice: Person
) -> None:
    musher, other = line.musher, await enter(alice, line.musher)
    gate = model.hang()
    await alice.say(line.room, "think hard")
    await model.wait_for_requests(1)
    await alice.say(line.room, "and this?")
    await musher.wait_for_log("messages_admitted", 2)
    await alice.kick(line.room, musher.user_id)
    await musher.wait_for_logs(
        lambda: any(each["outcome"] == "room gone" for each in musher.logged("messages_settled"))
    )
    gate.set()
    await musher.wait_for_log("delivery_refused")
    asked = await alice.say(other, "anything here?")
    await alice.wait_for_replies_to(other, asked, musher.user_id)
    for question in ("back?", "and again?"):
        await alice.say(line.room, "said while it was out")
        await alice.invite(line.room, musher.user_id)
        await alice.wait_for_membership(line.room, musher.user_id)
        await line.ask(question)
        assert model.requests[-1].text == f"<{alice.user_id}>: {question}"
        await alice.ban(line.room, musher.user_id)
        await alice.request("POST", "rooms", line.room, "unban", body={"user_id": musher.user_id})
    assert len(await alice.said(line.room, musher.user_id)) == 2


async def test_a_room_that_is_replaced_takes_its_conversation_along(
    line: Line, model: ScriptedModel, alice: Person
) -> None:
    bot = line.musher.user_id
    await line.musher.post_events(event("1"))
    await line.ask("before")
    gate = model.hang()
    await alice.say(line.room, "asked in the old room")
    await model.wait_for_requests(2)
    new_room = await alice.upgrade_room(line.room)
    await alice.invite(new_room, bot)
    await alice.wait_for_membership(new_room, bot)
    await line.musher.wait_for_log("room_upgraded")
    gate.set()
    await alice.wait_for(new_room, lambda events: [each for each in events if each["sender"] == bot and answered(each)])
    await line.musher.post_events(event("2"))
    asked = await alice.say(new_room, "and now?")
    await alice.wait_for_replies_to(new_room, asked, bot)
    told_in_old, again, told_in_new = model.requests[1:]
    assert again.messages == told_in_old.messages
    assert told_in_new.messages[: len(again.messages)] == again.messages
    assert told_in_new.text == f"{frame(event('2'))}<{alice.user_id}>: and now?"
    await line.musher.stop()
    (session,) = await line.musher.command("sessions")
    assert (session["session_id"], session["turns"]) == (new_room, 3)
    await line.musher.start()
    asked = await alice.say(line.room, "a last word in the old room")
    await alice.wait_for_replies_to(new_room, asked, bot)
    assert len(await alice.said(line.room, bot)) == 1


async def test_what_is_taken_back_after_it_was_told_is_forgotten_at_the_next_turn(
    line: Line, model: ScriptedModel, alice: Person
) -> None:
    await line.ask("hello")
    gate = model.hang()
    slip = await alice.say(line.room, "my password is hunter2")
    await model.wait_for_requests(2)
    await alice.redact(line.room, slip)
    await alice.say(line.room, "forget that, please")
    await line.musher.wait_for_log("messages_admitted", 3)
    gate.set()
    await line.musher.wait_for_log("messages_struck")
    await line.ask("what did I say?")
    told = [text_of(message) for message in model.requests[-1].messages if message["role"] == "user"]
    said = f"<{alice.user_id}>: "
    assert told[:2] == [f"{said}hello", f"{said}[redacted]"]
    await line.musher.stop()
    assert b"hunter2" not in line.musher.database.read_bytes()
