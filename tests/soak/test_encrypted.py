"""What is readable, or is not, in an encrypted room at the end of a soak is found."""

from __future__ import annotations

from typing import Any

from tests.soak.encrypted import decrypted
from tests.soak.oracle import Findings

BOT = "@musher:localhost"
ALICE = "@alice:localhost"
JOINED = {"type": "m.room.member", "event_id": "$join", "sender": BOT, "content": {"membership": "join"}}
READ = {"$1": {"body": "question"}, "$2": {"body": "reply"}}


def sent(event_id: str, sender: str, kind: str = "m.room.encrypted") -> dict[str, Any]:
    return {"type": kind, "event_id": event_id, "sender": sender, "content": {"dev.musher.delivery_id": event_id}}


ROOM = [JOINED, sent("$1", ALICE), sent("$2", BOT)]


def found(*history: dict[str, Any]) -> list[str]:
    findings = Findings()
    decrypted("room", history, READ, BOT, findings)
    return findings.wrong


def test_an_encrypted_conversation_is_read_with_what_stands_outside_of_the_encryption() -> None:
    findings = Findings()
    timeline = decrypted("room", ROOM, READ, BOT, findings)
    assert not findings
    assert [each["content"]["body"] for each in timeline] == ["question", "reply"]
    assert [each["content"]["dev.musher.delivery_id"] for each in timeline] == ["$1", "$2"]


def test_a_readable_message_of_the_bot_is_found() -> None:
    assert found(*ROOM, sent("$3", BOT, "m.room.message")) == ["room: $3 of the bot is readable (m.room.message)"]


def test_a_reply_that_nobody_can_read_is_found() -> None:
    assert found(*ROOM, sent("$3", BOT)) == [f"room: nobody can read $3 of {BOT}"]


def test_a_bot_that_went_and_came_back_is_found() -> None:
    assert found(*ROOM, JOINED) == ["room: the bot's membership changed 2 times"]
