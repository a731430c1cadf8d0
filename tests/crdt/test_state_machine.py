"""The store against a small model in plain Python: any order of calls, with restarts, rolls and retention between."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from crdt import Appended, Delivery, Edit, EventBatch, LlmSessionView, Message, Store, TranscriptEntry, Turn, TurnOpen
from tests.crdt.samples import delivery, event, lines, message, told

SLED = "build-1"
ROOMS = ("!a", "!b")
ROLL_AFTER = 6
MAX_CONTEXT = 3

rooms = st.sampled_from(ROOMS)


@dataclass
class ModelTurn:
    """A turn that was begun."""

    text: str
    attempts: int = 1
    complete: bool = False


def is_answer(entry: TranscriptEntry) -> bool:
    """Whether a model said it, having been told of all events before."""
    return entry.role == "assistant" and not entry.failed


@dataclass
class ModelSession:
    """What the model knows of a session."""

    persona: str = ""
    mark: int = 0
    has_mark: bool = False
    start: int = 0
    entries: list[TranscriptEntry] = field(default_factory=list)
    turns: dict[str, ModelTurn] = field(default_factory=dict)

    @property
    def open_keys(self) -> list[str]:
        """Turns without a reply."""
        return [key for key, turn in self.turns.items() if not turn.complete]

    def keep_newest(self, at_most: int) -> None:
        """Trim the transcript at the border of a turn; the lines that no model has answered yet go along."""
        kept = self.entries[max(0, len(self.entries) - at_most) :]
        while kept and kept[0].role != "user":
            kept = kept[1:]
        unheard: list[str] = []
        for entry in self.entries[: len(self.entries) - len(kept)]:
            unheard = [] if is_answer(entry) else [*unheard, *entry.lines]
        if kept and not any(map(is_answer, kept)):
            kept[0] = replace(kept[0], lines=[*unheard, *kept[0].lines])
        self.entries = kept

    def roll_if_grown(self) -> None:
        """What begin and assemble do before they write."""
        if len(self.entries) >= ROLL_AFTER and not self.open_keys:
            self.keep_newest(ROLL_AFTER // 2)


@dataclass
class ModelMessage:
    """A row of the inbox."""

    message: Message
    turn_key: str | None = None
    outcome: str | None = None


class StoreMachine(RuleBasedStateMachine):
    """Every rule does the same to the store and to the model, and compares what comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = [
            patch("crdt.sessions.ROLL_AFTER_ENTRIES", ROLL_AFTER),
            patch("crdt.event_log.COMPACT_LIVE_AFTER_OPS", 6),
            patch("crdt.event_log.SEALED_SEGMENTS_IN_MEMORY", 2),
            patch("crdt.sessions.SESSIONS_IN_MEMORY", 1),
            patch("crdt.inbox.MAX_CONTEXT", MAX_CONTEXT),
        ]
        for one in self.patches:
            one.start()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="musher-store-"))
        self.store: Store | None = None
        self.retention: int | None = None
        self.head = 0
        self.oldest = 1
        self.keys: set[str] = set()
        self.sessions: dict[str, ModelSession] = {}
        self.inbox: dict[str, ModelMessage] = {}
        self.due: list[Delivery] = []
        self.known_deliveries: set[str] = set()
        self.cursor: str | None = None
        self.names = 0

    def teardown(self) -> None:
        try:
            if self.store is not None:
                self.run(self.store.close())
        finally:
            self.runner.close()
            shutil.rmtree(self.folder)
            for one in self.patches:
                one.stop()

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        """Run a call to its end in the machine's own loop."""
        return self.runner.run(call)

    @property
    def opened(self) -> Store:
        """The open store."""
        assert self.store is not None
        return self.store

    def name(self) -> str:
        """A key that was never used."""
        self.names += 1
        return f"${self.names}"

    def session(self, room: str) -> ModelSession:
        """The model's session; a new one starts at the oldest event that is kept."""
        if room not in self.sessions:
            self.sessions[room] = ModelSession(start=self.oldest - 1)
        return self.sessions[room]

    @initialize(segment_events=st.integers(1, 12), retention=st.none() | st.integers(0, 20))
    def open(self, segment_events: int, retention: int | None) -> None:
        path = self.folder / "musher.db"
        self.store = Store.open(path, sled_id=SLED, segment_events=segment_events, retention_events=retention)
        self.retention = retention
        self.run(self.store.__aenter__())
        self.look_what_retention_left()

    @rule(segment_events=st.integers(1, 12), retention=st.none() | st.integers(0, 20))
    def reopen(self, segment_events: int, retention: int | None) -> None:
        self.run(self.opened.close())
        self.open(segment_events, retention)

    @rule()
    def housekeep(self) -> None:
        """Compaction and retention, which also come by themselves after an append."""
        self.run(self.opened.housekeep())
        self.look_what_retention_left()

    def look_what_retention_left(self) -> None:
        """Retention keeps at least what it says, from some seq on without a hole."""
        kept = [one.event_seq for one in self.run(self.opened.read_events(limit=10**6))]
        oldest = kept[0] if kept else self.oldest
        assert kept == list(range(oldest, self.head + 1))
        assert oldest >= self.oldest
        if self.retention is None:
            assert oldest == self.oldest
        else:
            assert len(kept) >= min(self.retention, self.head - self.oldest + 1)
        self.oldest = oldest

    @rule(count=st.integers(0, 12))
    def append(self, count: int) -> None:
        new = list(range(self.head + 1, self.head + 1 + count))
        assert self.run(self.opened.append_events([event(number) for number in new])) == new
        self.head += count
        self.housekeep()

    @rule(wanted=st.lists(st.tuples(st.integers(0, 3), st.lists(st.sampled_from("abcdefgh"), max_size=2)), max_size=4))
    def append_batches(self, wanted: Sequence[tuple[int, list[str]]]) -> None:
        batches, expected = [], []
        for count, keys in wanted:
            new = tuple(range(self.head + 1, self.head + 1 + count))
            batches.append(EventBatch(tuple(event(number) for number in new), tuple(keys)))
            if self.keys.intersection(keys):
                expected.append(Appended((), duplicate=True))
                continue
            expected.append(Appended(new))
            self.keys.update(keys)
            self.head += count
        assert self.run(self.opened.append_batches(batches)) == expected
        self.housekeep()

    @rule(room=rooms, persona=st.sampled_from(["", "dispatcher", "poet"]))
    def write_session(self, room: str, persona: str) -> None:
        self.run(self.opened.write_llm_session(room, persona_name=persona, scope="single-sled"))
        self.session(room).persona = persona

    @rule(room=rooms)
    def assemble(self, room: str) -> None:
        found = self.run(self.opened.assemble_and_advance_session(room))
        if room not in self.sessions and not found:
            return
        session = self.session(room)
        if found:
            session.roll_if_grown()
        self.check_lines(session, found, None)

    def check_lines(self, session: ModelSession, found: list[str], max_lines: int | None) -> None:
        """Everything past the mark, once and in order: a gap line, a fold line, the newest events."""
        mark = max(session.mark, session.start)
        assert told(found) == list(range(mark + 1, self.head + 1))
        expected = []
        if mark + 1 < self.oldest:
            expected.append(f"events between {mark + 1} and {self.oldest - 1} were dropped")
        first = max(mark + 1, self.oldest)
        shown = first if max_lines is None else max(first, self.head - max_lines + 1)
        if first < shown and first <= self.head:
            expected.append(f"{shown - first} earlier events (seq {first}-{shown - 1}) omitted")
        assert found == expected + lines(shown, self.head)
        if found:
            session.mark, session.has_mark = self.head, True

    @rule(
        room=rooms,
        max_lines=st.integers(0, 8),
        text=st.text(max_size=5),
        admitted=st.booleans(),
        data=st.data(),
    )
    def begin(self, room: str, max_lines: int, text: str, admitted: bool, data: st.DataObject) -> None:
        waiting = [one for one in self.waiting(room) if one.turn_key is None]
        triggers = [one for one in waiting if not one.context]
        context = [one for one in waiting if one.context]
        said = triggers[: 1 + data.draw(st.integers(0, 2))] if admitted else []
        key = said[-1].key if said else self.name()
        turn = self.run(self.opened.begin_turn(room, key, text, context, said, max_lines=max_lines))
        session = self.session(room)
        session.roll_if_grown()
        self.check_lines(session, turn.lines, max_lines)
        assert turn == Turn(room, key, text, turn.lines, [one.text for one in context], 1)
        session.turns[key] = ModelTurn(text)
        session.entries.append(TranscriptEntry("user", key, text, turn.lines, turn.context))
        for one in context:
            self.inbox[one.key].outcome = "context"
        for taken in said:
            self.inbox[taken.key].turn_key = key

    @precondition(lambda self: any(session.turns for session in self.sessions.values()))
    @rule(data=st.data())
    def begin_again(self, data: st.DataObject) -> None:
        room = data.draw(st.sampled_from([room for room, session in self.sessions.items() if session.turns]))
        session = self.sessions[room]
        key = data.draw(st.sampled_from(sorted(session.turns)))
        turn = self.run(self.opened.begin_turn(room, key, "other text", max_lines=1))
        if len(session.entries) >= ROLL_AFTER:
            session.roll_if_grown()
        known = session.turns[key]
        if not known.complete:
            known.attempts += 1
        said = next((one for one in session.entries if (one.key, one.role) == (key, "user")), None)
        answer = next((one for one in session.entries if (one.key, one.role) == (key, "assistant")), None)
        reply = answer.text if answer else "" if known.complete else None
        assert (turn.attempt, turn.reply) == (known.attempts, reply)
        assert turn.failed == (answer is not None and answer.failed)
        if said is not None:
            assert (turn.text, turn.lines, turn.context) == (said.text, said.lines, said.context)

    @precondition(lambda self: any(session.turns for session in self.sessions.values()))
    @rule(data=st.data(), failed=st.booleans())
    def complete(self, data: st.DataObject, failed: bool) -> None:
        room = data.draw(st.sampled_from([room for room, session in self.sessions.items() if session.turns]))
        session = self.sessions[room]
        candidates = session.open_keys or sorted(session.turns)
        key = data.draw(st.sampled_from(candidates))
        sent = [delivery(f"d{key}", room), delivery(f"d{key}b", room)][: data.draw(st.integers(0, 2))]
        self.run(self.opened.complete_turn(Turn(room, key, ""), f"reply {key}", sent, failed=failed))
        if session.turns[key].complete:
            return
        session.turns[key].complete = True
        session.entries.append(TranscriptEntry("assistant", key, f"reply {key}", failed=failed))
        self.due += [one for one in sent if one.delivery_id not in self.known_deliveries]
        self.known_deliveries.update(one.delivery_id for one in sent)
        for row in self.inbox.values():
            if row.turn_key == key and row.outcome is None:
                row.outcome = "covered" if row.message.key != key else "failed" if failed else "answered"

    @precondition(lambda self: any(session.turns for session in self.sessions.values()))
    @rule(data=st.data())
    def park(self, data: st.DataObject) -> None:
        room = data.draw(st.sampled_from([room for room, session in self.sessions.items() if session.turns]))
        key = data.draw(st.sampled_from(sorted(self.sessions[room].turns)))
        self.run(self.opened.park_turn(Turn(room, key, "")))
        known = self.sessions[room].turns[key]
        if not known.complete:
            known.attempts = max(0, known.attempts - 1)

    @rule(room=rooms, keep=st.integers(0, 8))
    def roll(self, room: str, keep: int) -> None:
        session = self.sessions.get(room)
        try:
            self.run(self.opened.roll_session(room, keep))
        except TurnOpen:
            assert session is not None
            assert session.open_keys
            return
        if session is not None:
            assert not session.open_keys
            session.keep_newest(keep)

    @rule(room=rooms, kinds=st.lists(st.booleans(), max_size=4), again=st.booleans())
    def admit(self, room: str, kinds: list[bool], again: bool) -> None:
        new = [message(self.name(), f"text {number}", room, context=kind) for number, kind in enumerate(kinds)]
        known = [row.message for row in self.inbox.values()][:1] if again else []
        self.cursor = f"s{self.names}"
        assert self.run(self.opened.admit([*known, *new], self.cursor)) == new
        self.inbox |= {one.key: ModelMessage(one) for one in new}
        if any(kinds):
            waiting = [one for one in self.waiting(room) if one.context]
            for one in waiting[: max(0, len(waiting) - MAX_CONTEXT)]:
                self.inbox[one.key].outcome = "beyond the newest context"

    @precondition(lambda self: bool(self.inbox))
    @rule(data=st.data(), what=st.sampled_from(["edit", "redact", "settle", "forge"]))
    def change_message(self, data: st.DataObject, what: str) -> None:
        row = self.inbox[data.draw(st.sampled_from(sorted(self.inbox)))]
        key, sender = row.message.key, row.message.sender
        open_ = row.outcome is None
        if what == "edit":
            self.run(self.opened.admit([], edits=[Edit(key, sender, f"edited {self.name()}")]))
            if open_ and row.turn_key is None:
                row.message = message(key, f"edited ${self.names}", row.message.session_id, context=row.message.context)
        elif what == "forge":
            self.run(self.opened.admit([], edits=[Edit(key, "@mallory:example.org", "forged")]))
        elif what == "redact":
            self.run(self.opened.admit([], redactions=[key]))
            if open_ and row.turn_key is None:
                row.outcome = "redacted"
        else:
            sent = delivery(self.name(), row.message.session_id)
            self.run(self.opened.settle([key], "a command", [sent]))
            self.due.append(sent)
            if open_:
                row.outcome = "a command"

    @precondition(lambda self: bool(self.due))
    @rule(sent=st.booleans())
    def deliver(self, sent: bool) -> None:
        first = self.run(self.opened.due_deliveries())[0]
        self.run(self.opened.delivery_attempted(first.delivery_id))
        if sent:
            self.run(self.opened.delivery_sent(first.delivery_id, "$event"))
        else:
            self.run(self.opened.delivery_dropped(first.delivery_id, "refused"))
        self.due = [one for one in self.due if one.delivery_id != first.delivery_id]

    def waiting(self, room: str) -> list[Message]:
        """The model's unsettled messages."""
        return [
            message(row.message.key, row.message.text, room, context=row.message.context, turn_key=row.turn_key)
            for row in self.inbox.values()
            if row.outcome is None and row.message.session_id == room
        ]

    @invariant()
    def sessions_agree(self) -> None:
        for room in ROOMS if self.store is not None else ():
            session = self.sessions.get(room)
            view = self.run(self.opened.read_llm_session(room))
            if session is None:
                assert view is None
                continue
            marks = {SLED: session.mark} if session.has_mark else {}
            assert view == LlmSessionView(room, session.persona, "single-sled", marks)
            assert self.run(self.opened.read_transcript(room)) == session.entries

    @invariant()
    def rows_agree(self) -> None:
        if self.store is None:
            return
        for room in ROOMS:
            assert self.run(self.opened.waiting(room)) == self.waiting(room)
        firsts: dict[str, Delivery] = {}
        for one in self.due:
            firsts.setdefault(one.session_id, one)
        assert self.run(self.opened.due_deliveries()) == list(firsts.values())
        assert self.run(self.opened.read_cursor()) == self.cursor


TestStoreAgainstItsModel = StoreMachine.TestCase
TestStoreAgainstItsModel.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
