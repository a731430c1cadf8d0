"""What the model was told and what the room shows, read without any of Musher's own code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from tests.servers.model import ScriptedModel, text_of
from tests.servers.synapse import Person, RoomEvent

_FRAME: Final = re.compile(r"\A<pipeline_events>\n(.*?)\n</pipeline_events>\n\n", re.DOTALL)
_MESSAGE: Final = re.compile(r"^<@[^>]*>: ", re.MULTILINE)


def event(story: str | int, *, event_id: str | None = None, what: str = "GatesStarted") -> dict[str, str]:
    """A pipeline event as senders post it."""
    fields = {"story_id": str(story), "from_stage": "2_current", "to_stage": "3_qa", "pipeline_event": what}
    return fields if event_id is None else fields | {"id": event_id}


def line_of(posted: Mapping[str, str]) -> str:
    """The audit line of an event that was posted, where nothing in it needs an escape."""
    return (
        f'pipeline_event story_id="{posted["story_id"]}" from="{posted["from_stage"]}" to="{posted["to_stage"]}" '
        f'event="{posted["pipeline_event"]}"'
    )


def frame(*events: Mapping[str, str]) -> str:
    """What stands before the people's words in the message that brings these events."""
    return "\n".join(["<pipeline_events>", *(line_of(each) for each in events), "</pipeline_events>", "", ""])


@dataclass(frozen=True, slots=True)
class Told:
    """One user message at the model's server: the audit lines in its frame, and each person's words."""

    lines: tuple[str, ...]
    said: tuple[str, ...]


def told(content: str) -> Told:
    """Take a user message apart."""
    found = _FRAME.match(content)
    lines = tuple(found.group(1).split("\n")) if found else ()
    spoken = content[found.end() :] if found else content
    starts = [match.start() for match in _MESSAGE.finditer(spoken)]
    pieces = zip(starts, [*starts[1:], len(spoken) + 1], strict=True)
    return Told(lines, tuple(spoken[start : end - 1] for start, end in pieces))


def all_told(messages: Iterable[Mapping[str, Any]]) -> list[Told]:
    """The user messages of one request, oldest first."""
    return [told(text_of(message)) for message in messages if message["role"] == "user"]


def replies_in(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    """The model's own earlier replies in one request, oldest first."""
    return [text_of(message) for message in messages if message["role"] == "assistant"]


def answered(reply: RoomEvent) -> str | None:
    """The id of the event that a message of the bot answers."""
    event_id = reply["content"].get("m.relates_to", {}).get("m.in_reply_to", {}).get("event_id")
    return None if event_id is None else str(event_id)


async def wait_until_settled(person: Person, room: str, event_id: str, bot: str, timeout: float = 30.0) -> None:
    """Wait until the bot has answered a message, or one that came after it."""

    def settled(events: Sequence[RoomEvent]) -> bool:
        ids = [each["event_id"] for each in events]
        later = set(ids[ids.index(event_id) :]) if event_id in ids else set()
        return any(each["sender"] == bot and each["content"] and answered(each) in later for each in events)

    await person.wait_for(room, settled, timeout)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one room and the model's server show at the end, for further comparison."""

    lines: list[str]
    turns: int


async def judge(person: Person, room: str, bot: str, model: ScriptedModel) -> Verdict:
    """Ask a last question and hold all that was said in the room against what the model was told of it.

    Makes sure that each message stands once in the conversation, in order; that each turn has exactly one reply in the
    room, to its newest message and with the words that the model is shown; and that no retry changed a byte of what
    the model had been told before.
    """
    last = await person.say(room, f"a last question in {room}")
    await person.wait_for_replies_to(room, last, bot)
    spoken = await person.said(room)
    questions = [each for each in spoken if each["sender"] != bot]
    replies = [each for each in spoken if each["sender"] == bot]
    asked = {said_line(each) for each in questions}
    requests = [each for each in model.requests if asked & set(all_told(each.messages)[-1].said)]
    final = requests[-1].messages
    turns = all_told(final)
    assert [said for turn in turns for said in turn.said] == [said_line(each) for each in questions]
    newest = [questions[count - 1]["event_id"] for count in accumulate(len(turn.said) for turn in turns)]
    assert [answered(reply) for reply in replies] == newest
    assert [reply["content"]["body"] for reply in replies[:-1]] == replies_in(final)
    deliveries = [reply["content"]["dev.musher.delivery_id"] for reply in replies]
    assert len(set(deliveries)) == len(deliveries)
    for request in requests:
        assert final[: len(request.messages)] == request.messages
    return Verdict([line for turn in turns for line in turn.lines], len(turns))


def said_line(message: RoomEvent) -> str:
    """A message of one line as the model is told it."""
    return f"<{message['sender']}>: {message['content']['body']}"
