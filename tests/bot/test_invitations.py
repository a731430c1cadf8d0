from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import pytest
from structlog.testing import capture_logs

from bot import invitations, pace
from bot.invitations import MAX_TRIES, Invitations
from bot.matrix import Forbidden, Invite, LoggedOut, NotInRoom, RateLimited, Refused, Unreachable
from bot.pace import Pace
from bot.policy import Rules
from tests.bot.edge import ALICE, BOB, ROOM, Rooms, until

OTHER = "!other:example.org"
SERVER = "https://example.org"
DOWN = Unreachable(SERVER, "no connection")


@pytest.fixture
def rooms() -> Rooms:
    return Rooms()


def answers(rooms: Rooms, **rules: Any) -> Invitations:
    return Invitations(rooms, Pace(), Rules(allows=lambda user: user == ALICE, **rules))


async def test_an_allowed_person_gets_the_bot_into_a_private_room(rooms: Rooms) -> None:
    invitations = answers(rooms)
    invitations.came(Invite(ROOM, ALICE))
    await invitations.answer_open()
    await invitations.answer_open()
    assert (rooms.joined, rooms.left) == ([ROOM], [])


@pytest.mark.parametrize(
    ("invite", "rules"),
    [
        (Invite(ROOM, BOB), {}),
        (Invite(ROOM, ALICE, public=True), {}),
        (Invite(ROOM, ALICE), {"allowed_rooms": frozenset({OTHER})}),
    ],
    ids=["not allowed", "public", "not listed"],
)
async def test_other_invitations_are_declined_without_joining(
    rooms: Rooms, invite: Invite, rules: dict[str, Any]
) -> None:
    invitations = answers(rooms, **rules)
    invitations.came(invite)
    with capture_logs() as logs:
        await invitations.answer_open()
    assert (rooms.tried_to_join, rooms.left) == ([], [ROOM])
    assert [line["event"] for line in logs].count("invite_declined") == 1


async def test_a_listed_room_may_be_public(rooms: Rooms) -> None:
    rooms.public.add(ROOM)
    invitations = answers(rooms, allowed_rooms=frozenset({ROOM}))
    invitations.came(Invite(ROOM, ALICE, public=True))
    await invitations.answer_open()
    assert (rooms.joined, rooms.left) == ([ROOM], [])


async def test_a_room_that_turns_out_to_be_public_is_left_again(rooms: Rooms) -> None:
    rooms.public.add(ROOM)
    invitations = answers(rooms)
    invitations.came(Invite(ROOM, ALICE))
    await invitations.answer_open()
    assert (rooms.joined, rooms.left) == ([ROOM], [ROOM])


@pytest.mark.parametrize("error", [Forbidden(ROOM, "withdrawn"), NotInRoom(ROOM), Refused(SERVER, "M_UNKNOWN", "no")])
async def test_an_invitation_that_can_not_be_accepted_is_logged_and_passed_over(rooms: Rooms, error: Any) -> None:
    rooms.join_troubles[ROOM] = deque([error])
    invitations = answers(rooms)
    invitations.came(Invite(ROOM, ALICE))
    with capture_logs() as logs:
        await invitations.answer_open()
        await invitations.answer_open()
    assert rooms.tried_to_join == [ROOM]
    assert [line["event"] for line in logs].count("invite_failed") == 1


async def test_a_join_that_fails_in_passing_is_tried_again_while_others_are_answered(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invitations, "RETRY_AFTER_S", 0.001)
    monkeypatch.setattr(pace, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(pace, "LOOK_EVERY_S", 0.001)
    ended = LoggedOut("@bot:example.org", SERVER, soft=False)
    rooms.join_troubles[ROOM] = deque([DOWN, RateLimited(SERVER, 0.001), ended])
    answering = answers(rooms)
    running = asyncio.create_task(answering.run())
    answering.came(Invite(ROOM, ALICE))
    answering.came(Invite(OTHER, ALICE))
    await until(lambda: len(rooms.joined) == 2)
    running.cancel()
    await asyncio.wait({running})
    assert rooms.joined == [OTHER, ROOM]


async def test_an_invitation_that_comes_while_another_is_answered_does_not_wait_for_a_retry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(invitations, "RETRY_AFTER_S", 3600)

    class Busy(Rooms):
        async def join(self, room_id: str) -> None:
            if room_id == ROOM:
                answering.came(Invite(OTHER, ALICE))
            await super().join(room_id)

    rooms = Busy()
    answering = answers(rooms)
    running = asyncio.create_task(answering.run())
    answering.came(Invite(ROOM, ALICE))
    await until(lambda: len(rooms.joined) == 2)
    running.cancel()
    await asyncio.wait({running})


async def test_an_invitation_that_comes_while_another_waits_for_a_retry_is_answered(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invitations, "RETRY_AFTER_S", 3600)
    rooms.join_troubles[ROOM] = deque([DOWN] * 10)
    answering = answers(rooms)
    running = asyncio.create_task(answering.run())
    answering.came(Invite(ROOM, ALICE))
    await until(lambda: rooms.tried_to_join)
    answering.came(Invite(OTHER, ALICE))
    await until(lambda: rooms.joined)
    running.cancel()
    await asyncio.wait({running})
    assert rooms.joined == [OTHER]


async def test_a_room_that_can_never_be_joined_is_given_up(rooms: Rooms) -> None:
    rooms.join_troubles[ROOM] = deque([DOWN] * 1000)
    invitations = answers(rooms)
    invitations.came(Invite(ROOM, ALICE))
    with capture_logs() as logs:
        for _ in range(MAX_TRIES + 5):
            await invitations.answer_open()
    assert len(rooms.tried_to_join) == MAX_TRIES
    assert [line["event"] for line in logs].count("invite_given_up") == 1


async def test_an_invitation_that_is_withdrawn_meanwhile_is_forgotten(rooms: Rooms) -> None:
    rooms.join_troubles[ROOM] = deque([DOWN])
    invitations = answers(rooms)
    invitations.came(Invite(ROOM, ALICE))
    await invitations.answer_open()
    invitations.ended(ROOM)
    await invitations.answer_open()
    assert rooms.tried_to_join == [ROOM]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(pace, "LONGEST_PAUSE_S", 0.001)
    monkeypatch.setattr(pace, "LOOK_EVERY_S", 0.001)


@pytest.mark.usefixtures("quick")
async def test_one_invitation_that_fails_makes_nobody_wait_but_two_do(rooms: Rooms) -> None:
    """A join also fails when only the room's own server is out of reach."""
    shared = Pace()
    answering = Invitations(rooms, shared, Rules(allows=lambda user: user == ALICE))
    rooms.join_troubles[ROOM] = deque([DOWN])
    answering.came(Invite(ROOM, ALICE))
    await answering.answer_open()
    assert shared.open
    rooms.join_troubles = {room: deque([DOWN]) for room in (ROOM, OTHER)}
    answering.came(Invite(OTHER, ALICE))
    await answering.answer_open()
    assert not shared.open


@pytest.mark.usefixtures("quick")
async def test_what_fails_in_an_outage_does_not_count_against_an_invitation(rooms: Rooms) -> None:
    shared = Pace()
    answering = Invitations(rooms, shared, Rules(allows=lambda user: user == ALICE))
    rooms.join_troubles[ROOM] = deque([DOWN] * (MAX_TRIES + 5))
    answering.came(Invite(ROOM, ALICE))
    for _ in range(MAX_TRIES + 5):
        shared.failed(DOWN)
        await answering.answer_open()
    await answering.answer_open()
    assert rooms.joined == [ROOM]


async def test_an_invitation_that_comes_while_an_earlier_one_is_declined_is_answered() -> None:
    class Busy(Rooms):
        async def leave(self, room_id: str) -> None:
            await super().leave(room_id)
            answering.ended(room_id)
            answering.came(Invite(room_id, ALICE))

    rooms = Busy()
    answering = answers(rooms)
    answering.came(Invite(ROOM, BOB))
    await answering.answer_open()
    await answering.answer_open()
    assert (rooms.left, rooms.joined) == ([ROOM], [ROOM])


async def test_of_a_burst_each_invitation_is_answered_as_it_stands_when_its_turn_comes() -> None:
    """While the first is answered, another is withdrawn, and a third replaced by one of somebody else."""
    third = "!third:example.org"

    class Busy(Rooms):
        async def join(self, room_id: str) -> None:
            await super().join(room_id)
            if room_id == ROOM:
                answering.ended(OTHER)
                answering.ended(third)
                answering.came(Invite(third, ALICE))

    rooms = Busy()
    answering = answers(rooms)
    for room, inviter in ((ROOM, ALICE), (OTHER, BOB), (third, BOB)):
        answering.came(Invite(room, inviter))
    await answering.answer_open()
    await answering.answer_open()
    assert (rooms.left, rooms.joined) == ([], [ROOM, third])


async def test_a_replacement_that_is_no_invitation_neither_covers_one_nor_is_declined(rooms: Rooms) -> None:
    """Who closed the old room may be somebody else than who invites the bot to the new one."""
    answering = answers(rooms)
    answering.came(Invite(OTHER, BOB, by_upgrade=True))
    await answering.answer_open()
    answering.came(Invite(ROOM, ALICE))
    answering.came(Invite(ROOM, BOB, by_upgrade=True))
    await answering.answer_open()
    answering.came(Invite(ROOM, BOB, by_upgrade=True))
    await answering.answer_open()
    assert (rooms.left, rooms.joined) == ([], [ROOM])
