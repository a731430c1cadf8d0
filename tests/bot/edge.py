"""What lies outside of the service's core, in memory: a homeserver, a model, and a disk that can be full."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bot.llm import Reply
from bot.matrix import MatrixError, SyncBatch
from bot.prompt import ModelMessage
from crdt import Message, Store, StoreFull

T = TypeVar("T")

ROOM = "!room:example.org"
ALICE = "@alice:example.org"
BOB = "@bob:example.org"


def message(key: str, text: str = "", **fields: Any) -> Message:
    """What Alice said in the room, unless told otherwise."""
    values: dict[str, Any] = {"session_id": ROOM, "sender": ALICE, "text": text or f"text of {key}"} | fields
    return Message(key=key, **values)


async def nowhere(_point: str) -> None:
    """Stop at no pause point."""


async def until(condition: Callable[[], T | None], timeout_s: float = 30.0) -> T:
    """Let the others run until `condition()` is something true, and return that."""
    async with asyncio.timeout(timeout_s):
        while not (found := condition()):  # noqa: ASYNC110 - it asks about things that send no signal
            await asyncio.sleep(0.001)
    return found


async def eventually(question: Callable[[], Awaitable[T | None]], timeout_s: float = 30.0) -> T:
    """Ask again until the answer is something true, and return that."""
    async with asyncio.timeout(timeout_s):
        while not (found := await question()):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.001)
    return found


class Disk:
    """The disk of an open store: `full_for` writes to come are refused."""

    def __init__(self, store: Store) -> None:
        self.full_for = 0
        self.refused = 0
        self._database = store._database
        self._write = self._database.write
        self._database.write = self.write  # type: ignore[method-assign]

    async def write(self, unit: Any) -> Any:
        if self.full_for:
            self.full_for -= 1
            self.refused += 1
            raise StoreFull(str(self._database.path))
        return await self._write(unit)


Behaviour = str | Reply | BaseException | asyncio.Event


@dataclass
class ToldModel:
    """A model that answers what it was told to, then "reply <n>". An event: wait for it first, an error: raise it."""

    behaviours: deque[Behaviour] = field(default_factory=deque)
    asked: list[list[ModelMessage]] = field(default_factory=list)

    def tell(self, *behaviours: Behaviour) -> None:
        self.behaviours.extend(behaviours)

    async def reply(self, messages: Sequence[ModelMessage]) -> Reply:
        self.asked.append(list(messages))
        text: Behaviour = f"reply {len(self.asked)}"
        if self.behaviours:
            text = self.behaviours.popleft()
        if isinstance(text, asyncio.Event):
            await text.wait()
            text = f"reply {len(self.asked)}"
        if isinstance(text, BaseException):
            raise text
        return text if isinstance(text, Reply) else Reply(text)


@dataclass(frozen=True)
class Sent:
    """One request to send."""

    room_id: str
    event_type: str
    content: Mapping[str, Any]
    txn_id: str


@dataclass
class Homeserver:
    """Takes what is sent, one event for one transaction id, and answers with `trouble` first: per room, in order.

    A trouble that is an event holds the request up until it is set. `takes_and_fails` rooms get what is sent, and the
    sender gets an error.
    """

    requests: list[Sent] = field(default_factory=list)
    looked_for: list[str] = field(default_factory=list)
    announced: list[str] = field(default_factory=list)
    events: dict[str, Sent] = field(default_factory=dict)
    trouble: dict[str, deque[Exception | asyncio.Event]] = field(default_factory=dict)
    loses_answer: set[str] = field(default_factory=set)
    refuses_search: Exception | None = None

    def fail(self, room_id: str, *troubles: Exception | asyncio.Event) -> None:
        self.trouble.setdefault(room_id, deque()).extend(troubles)

    def texts(self, room_id: str = ROOM) -> list[str]:
        return [sent.content["body"] for sent in self.events.values() if sent.room_id == room_id]

    async def send(self, room_id: str, event_type: str, content: Mapping[str, Any], txn_id: str) -> str:
        sent = Sent(room_id, event_type, content, txn_id)
        self.requests.append(sent)
        troubles = self.trouble.get(room_id)
        trouble = troubles.popleft() if troubles else None
        if isinstance(trouble, asyncio.Event):
            await trouble.wait()
        if trouble is None or isinstance(trouble, asyncio.Event) or room_id in self.loses_answer:
            self.events.setdefault(txn_id, sent)
        if isinstance(trouble, Exception):
            raise trouble
        return f"$event-of-{txn_id}"

    def announce(self, room_id: str) -> None:
        self.announced.append(room_id)

    async def find_own(self, room_id: str, delivery_id: str) -> str | None:
        self.looked_for.append(delivery_id)
        if self.refuses_search is not None:
            raise self.refuses_search
        return f"$event-of-{delivery_id}" if delivery_id in self.events else None


@dataclass
class Rooms:
    """A homeserver's answers to syncs, in order; afterwards it has no news. Records what it is asked to do."""

    batches: deque[SyncBatch | Exception] = field(default_factory=deque)
    public: set[str] = field(default_factory=set)
    join_troubles: dict[str, deque[MatrixError]] = field(default_factory=dict)
    asked: list[tuple[str | None, int]] = field(default_factory=list)
    joined: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    tried_to_join: list[str] = field(default_factory=list)
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    async def sync(self, since: str | None, timeout_ms: int) -> SyncBatch:
        self.asked.append((since, timeout_ms))
        if not self.batches:
            self.idle.set()
            await asyncio.Event().wait()
        batch = self.batches.popleft()
        if isinstance(batch, Exception):
            raise batch
        return batch

    async def join(self, room_id: str) -> None:
        self.tried_to_join.append(room_id)
        troubles = self.join_troubles.get(room_id)
        if troubles:
            raise troubles.popleft()
        self.joined.append(room_id)

    async def leave(self, room_id: str) -> None:
        self.left.append(room_id)

    async def is_public(self, room_id: str) -> bool:
        return room_id in self.public
