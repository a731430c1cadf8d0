"""Holds a room's timeline, the requests at the model's server and the accepted events against each other. Pure.

It knows only what is seen from outside: which messages stand in the room, what the model was told, and which events the
service has said that it took. Conversations may have been rolled meanwhile: what the newest request does not show any
more, earlier ones did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from tests.servers.model import text_of
from tests.servers.synapse import RoomEvent
from tests.system.outside import Told, all_told, answered, said_line, told

DELIVERY_ID: Final = "dev.musher.delivery_id"


@dataclass(slots=True)
class Findings:
    """What is wrong, in words; nothing is when all lists are empty."""

    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Out of order, changed between two requests, or answering what nobody asked."""

    def __bool__(self) -> bool:
        return bool(self.lost or self.twice or self.wrong)

    def count(self, room: str, what: str, wanted: Iterable[str], found: Iterable[str]) -> None:
        """Hold what was found, each to be found once, against what should be."""
        there, expected = Counter(found), list(wanted)
        self.lost += [f"{room}: {what} {each!r}" for each in expected if not there[each]]
        self.twice += [f"{room}: {what} {each!r} {count} times" for each, count in there.items() if count > 1]
        self.wrong += [f"{room}: {what} {each!r} is none that was sent" for each in there.keys() - set(expected)]

    def order(self, room: str, what: str, wanted: Sequence[str], found: Sequence[str]) -> None:
        """Make sure that what is in both stands in the same order."""
        both = set(wanted) & set(found)
        right, seen = [each for each in wanted if each in both], [each for each in found if each in both]
        first = next(((one, other) for one, other in zip(right, seen, strict=False) if one != other), None)
        if first is not None:
            self.wrong.append(f"{room}: {what} {first[1]!r} stands where {first[0]!r} should")


@dataclass(slots=True)
class SeenTurn:
    """A turn as the model was shown it: the words of the user message and, in later requests, the reply."""

    content: str
    told: Told
    reply: str | None = None


def conversation(room: str, requests: Iterable[Sequence[Mapping[str, Any]]], findings: Findings) -> list[SeenTurn]:
    """All turns of one room, oldest first, out of the messages of its requests."""
    turns: dict[tuple[str, ...], SeenTurn] = {}
    for messages in requests:
        for message, following in pairwise([*messages, None]):
            assert message is not None
            if message["role"] != "user":
                continue
            content = text_of(message)
            what = told(content)
            turn = turns.setdefault(what.said, SeenTurn(content, what))
            reply = None if following is None else text_of(following)
            if turn.content != content:
                findings.wrong.append(f"{room}: the model was told {what.said!r} in two ways")
            if reply is not None and turn.reply not in (None, reply):
                findings.wrong.append(f"{room}: the reply to {what.said!r} changed")
            turn.reply = turn.reply if reply is None else reply
    return list(turns.values())


def judge_room(
    room: str,
    timeline: Sequence[RoomEvent],
    bot: str,
    requests: Iterable[Sequence[Mapping[str, Any]]],
    findings: Findings,
) -> list[SeenTurn]:
    """Each message stands once in the conversation, each turn has one reply, to its newest message; all in order.

    `requests`: the messages of all requests to the model; those that ask for an answer in another room are left out.
    """
    questions = [each for each in timeline if each["sender"] != bot]
    replies = [each for each in timeline if each["sender"] == bot]
    asked = [said_line(each) for each in questions]
    turns = conversation(room, (each for each in requests if {*asked} & {*all_told(each)[-1].said}), findings)
    said = [line for turn in turns for line in turn.told.said]
    findings.count(room, "the message", asked, said)
    findings.order(room, "the message", asked, said)

    event_ids = dict(zip(asked, (str(each["event_id"]) for each in questions), strict=True))
    newest = [event_ids.get(turn.told.said[-1], "?") for turn in turns]
    targets = [str(answered(each)) for each in replies]
    findings.count(room, "the reply to", newest, targets)
    findings.order(room, "the reply to", newest, targets)
    bodies = dict(zip(targets, (each["content"]["body"] for each in replies), strict=True))
    for event_id, turn in zip(newest, turns, strict=True):
        if turn.reply is not None and bodies.get(event_id, turn.reply) != turn.reply:
            findings.wrong.append(f"{room}: the model is shown another reply to {event_id} than the room")
    deliveries = Counter(str(each["content"].get(DELIVERY_ID)) for each in replies)
    findings.twice += [f"{room}: delivery {each}" for each, count in deliveries.items() if count > 1]
    return turns


def judge_events(room: str, turns: Iterable[SeenTurn], taken: Mapping[str, Sequence[str]], findings: Findings) -> None:
    """Each accepted event was told once; those of one sender in its order. `taken`: audit lines by sender."""
    lines = [line for turn in turns for line in turn.told.lines]
    findings.count(room, "the event", [line for sent in taken.values() for line in sent], lines)
    for sent in taken.values():
        findings.order(room, "the event", sent, lines)
