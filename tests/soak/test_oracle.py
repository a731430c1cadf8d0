"""The soak's judge finds what it is there to find."""

from __future__ import annotations

from typing import Any

from tests.soak.oracle import Findings, judge_events, judge_room
from tests.system.outside import event, frame, line_of

BOT = "@musher:localhost"
ALICE = "@alice:localhost"
EVENTS = [event(1), event(2)]


def asked(number: int) -> dict[str, Any]:
    return {"event_id": f"${number}", "sender": ALICE, "content": {"body": f"question {number}"}}


def replied(number: int, text: str | None = None) -> dict[str, Any]:
    relation = {"m.in_reply_to": {"event_id": f"${number}"}}
    text = text or f"reply {number}"
    return {
        "event_id": f"$r{number}",
        "sender": BOT,
        "content": {"body": text, "m.relates_to": relation, "dev.musher.delivery_id": f"d{number}"},
    }


def user(*numbers: int, events: list[dict[str, str]] | None = None) -> dict[str, str]:
    said = "\n".join(f"<{ALICE}>: question {number}" for number in numbers)
    return {"role": "user", "content": (frame(*events) if events else "") + said}


def assistant(number: int) -> dict[str, str]:
    return {"role": "assistant", "content": f"reply {number}"}


SYSTEM = {"role": "system", "content": "be brief"}
TIMELINE = [asked(1), replied(1), asked(2), asked(3), replied(3), asked(4), replied(4)]
FIRST = [SYSTEM, user(1, events=EVENTS[:1])]
SECOND = [*FIRST, assistant(1), user(2, 3)]
THIRD = [SYSTEM, user(2, 3), assistant(3), user(4, events=EVENTS[1:])]
"""After a roll: the first turn is not shown any more."""


def judged(timeline: list[dict[str, Any]], *requests: list[dict[str, str]]) -> Findings:
    findings = Findings()
    turns = judge_room("room", timeline, BOT, requests, findings)
    judge_events("room", turns, {"ci": [line_of(each) for each in EVENTS]}, findings)
    return findings


def test_a_whole_conversation_passes_with_retries_and_rolls() -> None:
    assert not judged(TIMELINE, FIRST, FIRST, SECOND, THIRD)


def test_a_message_that_nobody_answered_is_lost() -> None:
    found = judged([*TIMELINE, asked(5)], FIRST, SECOND, THIRD)
    assert found.lost == [f"room: the message '<{ALICE}>: question 5'"]


def test_a_reply_that_is_missing_or_there_twice_is_found() -> None:
    assert judged(TIMELINE[:-1], FIRST, SECOND, THIRD).lost == ["room: the reply to '$4'"]
    found = judged([*TIMELINE, replied(4)], FIRST, SECOND, THIRD)
    assert found.twice == ["room: the reply to '$4' 2 times", "room: delivery d4"]


def test_an_event_that_was_never_told_or_told_again_is_found() -> None:
    without = [*THIRD[:-1], user(4)]
    assert judged(TIMELINE, FIRST, SECOND, without).lost == [f"room: the event '{line_of(EVENTS[1])}'"]
    again = [*THIRD[:-1], user(4, events=EVENTS)]
    assert judged(TIMELINE, FIRST, SECOND, again).twice == [f"room: the event '{line_of(EVENTS[0])}' 2 times"]


def test_other_bytes_in_a_retry_and_another_reply_than_the_rooms_are_found() -> None:
    assert judged(TIMELINE, [SYSTEM, user(1, events=EVENTS)], *(SECOND, THIRD)).wrong
    other = [asked(1), replied(1, "something else"), *TIMELINE[2:]]
    assert judged(other, FIRST, SECOND, THIRD).wrong == ["room: the model is shown another reply to $1 than the room"]


def test_a_message_told_out_of_order_is_found() -> None:
    swapped = [asked(1), replied(1), asked(3), asked(2), replied(3), asked(4), replied(4)]
    assert judged(swapped, FIRST, SECOND, THIRD).wrong
