"""What the bot believes about rooms: a room is followed to another only where each names the other."""

from __future__ import annotations

from typing import Any

from bot.matrix.model import Upgrade
from bot.matrix.rooms import Rooms

ME = "@musher:fake"


def state(kind: str, content: dict[str, Any], key: str | None = "") -> dict[str, Any]:
    event = {"type": kind, "sender": "@alice:fake", "content": content}
    return event if key is None else event | {"state_key": key}


def tombstone(replacement: object) -> dict[str, Any]:
    return state("m.room.tombstone", {"body": "moved", "replacement_room": replacement})


def create(predecessor: object) -> dict[str, Any]:
    return state("m.room.create", {"room_version": "12", "predecessor": predecessor})


def knowing(**events: list[dict[str, Any]]) -> Rooms:
    rooms = Rooms()
    for name, told in events.items():
        for event in told:
            rooms.enter(f"!{name}").apply(event, ME)
    return rooms


def test_a_room_and_its_replacement_that_name_each_other_are_an_upgrade() -> None:
    rooms = knowing(old=[tombstone("!new")], new=[create({"room_id": "!old"})])
    assert rooms.upgrades() == (Upgrade("!old", "!new"),)
    assert rooms.enter("!old").replaced_by == "@alice:fake"
    rooms.leave("!new")
    assert rooms.upgrades() == ()


def test_the_word_of_one_room_is_not_enough() -> None:
    claims_to_follow = create({"room_id": "!old"})
    assert knowing(old=[], other=[claims_to_follow]).upgrades() == ()
    assert knowing(old=[tombstone("!other")], other=[create(None)]).upgrades() == ()
    assert knowing(old=[tombstone("!other")], other=[create({"room_id": "!third"})]).upgrades() == ()
    assert knowing(old=[tombstone("!new")], other=[claims_to_follow]).upgrades() == ()


def test_what_is_no_state_or_malformed_replaces_nothing() -> None:
    new = [create({"room_id": "!old"})]
    said = state("m.room.tombstone", {"replacement_room": "!new"}, key=None)
    for event in (said, tombstone(7), tombstone(""), state("m.room.tombstone", {"replacement_room": "!new"}, "x")):
        assert knowing(old=[event], new=new).upgrades() == ()
    for predecessor in ("!old", ["!old"], {"room_id": 7}):
        assert knowing(old=[tombstone("!new")], new=[create(predecessor)]).upgrades() == ()
