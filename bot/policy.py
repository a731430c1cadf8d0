"""What becomes of a message, with the reason; and which waiting messages make the next turn. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from crdt import Message

CLOCK_SKEW_MS: Final = 30_000
"""How far behind ours the clock of a sender's server may be, with the way from there: no message seems older by it."""
MAX_BURST_MESSAGES: Final = 20
MAX_BURST_CHARACTERS: Final = 16_000

Fate = Literal["ignore", "context", "answer"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a message. What is ignored is neither stored nor shown to the model."""

    fate: Fate
    reason: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator decided. `allows` tells whether a user id may talk to the bot."""

    allows: Callable[[str], bool]
    allowed_rooms: frozenset[str] = frozenset()
    respond_to: Literal["all", "mentions"] = "all"
    answer_backlog_s: float = 86_400.0
    answer_after_ms: int = 0
    """What is older (Unix ms) may have been answered by another database: from before a restore, or a first start."""

    def allows_room(self, room_id: str, *, public: bool) -> bool:
        """Whether the bot may be in a room: a listed one; any private one when nothing is listed."""
        return room_id in self.allowed_rooms or not (self.allowed_rooms or public)


def decide(rules: Rules, *, room_id: str, sender: str, mentions_me: bool, origin_ms: int, now_ms: int) -> Decision:
    """Decide what becomes of a message when it comes in."""
    if not rules.allows(sender):
        return Decision("ignore", "not allowed")
    if rules.allowed_rooms and room_id not in rules.allowed_rooms:
        return Decision("ignore", "room not allowed")
    if now_ms - origin_ms > max(rules.answer_backlog_s * 1000, CLOCK_SKEW_MS):
        return Decision("context", "too old")
    if origin_ms < rules.answer_after_ms:
        return Decision("context", "from before this database")
    if rules.respond_to == "mentions" and not mentions_me:
        return Decision("context", "not mentioned")
    return Decision("answer", "addressed")


@dataclass(frozen=True, slots=True)
class Details:
    """What the bot keeps with a message besides its text, as JSON in the inbox."""

    thread_root: str | None = None
    thread_room: str | None = None
    """The room of the thread: a conversation may go on in another, where nothing can be said in it."""

    def dump(self) -> str:
        """Write it as the inbox holds it."""
        return json.dumps({"thread_root": self.thread_root, "thread_room": self.thread_room})

    def thread_in(self, room_id: str) -> str | None:
        """The root of the thread in which a reply in this room is to stand."""
        return self.thread_root if self.thread_room in (None, room_id) else None

    @classmethod
    def load(cls, text: str) -> Details:
        """Read it back."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class NextTurn:
    """The messages of the next turn: `said` are answered by one reply to the newest, `context` came before it."""

    key: str
    said: tuple[Message, ...]
    context: tuple[Message, ...] = ()

    @property
    def newest(self) -> Message:
        """The message that the reply refers to."""
        return self.said[-1]


def next_turn(waiting: Sequence[Message]) -> NextTurn | None:
    """Choose the next turn of a room from its unsettled messages, oldest first; `None` when there is nothing to answer.

    A turn that was begun goes on with the messages that it took. Otherwise the oldest message is answered, together
    with those that followed it in the same thread, up to a limit.
    """
    to_answer = [message for message in waiting if not message.context]
    if not to_answer:
        return None
    # Not only of the oldest: in a room that has replaced another, something older may wait than what came along.
    begun = next((message.turn_key for message in to_answer if message.turn_key is not None), None)
    if begun is not None:
        taken = [message for message in to_answer if message.turn_key == begun]
        taken.sort(key=lambda message: message.key == begun)
        return NextTurn(begun, tuple(taken))
    said = _burst([message for message in to_answer if message.turn_key is None])
    position = waiting.index(said[-1])
    context = tuple(message for message in waiting[:position] if message.context)
    return NextTurn(said[-1].key, said, context)


def _burst(messages: Sequence[Message]) -> tuple[Message, ...]:
    thread = Details.load(messages[0].details).thread_root
    taken: list[Message] = []
    characters = 0
    for message in messages[:MAX_BURST_MESSAGES]:
        characters += len(message.text)
        elsewhere = Details.load(message.details).thread_root != thread
        if taken and (elsewhere or characters > MAX_BURST_CHARACTERS):
            break
        taken.append(message)
    return tuple(taken)
