"""Events that no model has answered reach the next one that does, however little it can hold."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.llm import ModelFailed
from bot.prompt import ModelMessage, estimate_tokens, model_messages, split_user
from crdt import FOLDED, PipelineEvent, Store, TranscriptEntry, audit_line, parse_audit_line
from tests.bot.answering import Room

_NAMES = {"short": "7", "ordinary": "Fix the flaky login test on slow runners", "other": "測試" * 90}


def told(messages: list[ModelMessage]) -> tuple[list[str], int]:
    """The story ids that messages tell, and how many events they only count."""
    lines = [line for message in messages if message.role == "user" for line in split_user(message.content)[0]]
    shown = [event.story_id for event in map(parse_audit_line, lines) if event]
    return shown, sum(int(found["count"]) for found in map(FOLDED.fullmatch, lines) if found)


@settings(deadline=None)
@given(
    turns=st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from(sorted(_NAMES)), st.integers(0, 3000), st.booleans()), min_size=1
    ),
    budget=st.integers(1_500, 20_000),
)
def test_each_event_since_the_last_reply_is_shown_or_counted(
    turns: list[tuple[int, str, int, bool]], budget: int
) -> None:
    transcript: list[TranscriptEntry] = []
    unheard: list[str] = []
    number = 0
    for count, name, length, answered in turns:
        ids = [f"{number + n} {_NAMES[name]}" for n in range(count)]
        number += count
        lines = [audit_line(PipelineEvent(each, "qa", "done", "x")) for each in ids]
        transcript += [TranscriptEntry("user", "$1", "<@a:b>: " + "x" * length, lines)]
        unheard += ids
        shown, counted = told(model_messages("", transcript, budget_tokens=budget))
        assert counted <= len(unheard)
        assert shown[len(shown) - len(unheard[counted:]) :] == unheard[counted:]
        transcript += [TranscriptEntry("assistant", "$1", "reply", failed=not answered)]
        if answered:
            unheard.clear()


def test_a_turn_whose_events_alone_are_too_many_for_the_model_shows_the_newest_and_counts_the_others() -> None:
    lines = [audit_line(PipelineEvent(f"{n} {_NAMES['other']}", "qa", "done", "x")) for n in range(51)]
    question = TranscriptEntry("user", "$1", "<@a:b>: what happened?", lines)
    messages = model_messages("", [question], budget_tokens=6_144)
    shown, counted = told(messages)
    assert len(shown) + counted == 51
    assert shown
    assert shown[-1].startswith("50 ")
    assert sum(estimate_tokens(message.content) + 8 for message in messages) <= 6_144
    assert messages[-1].content.endswith("what happened?")


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with Store.open(tmp_path / "musher.db") as store:
        yield Room.of(store)


@pytest.mark.parametrize("kind", ["unreachable", "context_overflow"])
async def test_what_happened_during_an_outage_of_the_model_is_told_after_it(room: Room, kind: str) -> None:
    room.change(context_tokens=4096)
    happened = [f"{n} {_NAMES['ordinary']}" for n in range(120)]
    for first in range(0, 120, 20):
        await room.store.append_events(
            [PipelineEvent(each, "qa", "done", "x") for each in happened[first : first + 20]]
        )
        room.model.tell(*[ModelFailed(kind, "down")] * 2)  # type: ignore[arg-type]
        await room.says("what happened?")
        await room.answer()
        room.model.behaviours.clear()
    await room.says("and now?")
    await room.answer()
    shown, counted = told(room.model.asked[-1])
    assert shown == happened[counted:]
    assert 0 < counted < 120
    await room.says("and then?")
    await room.answer()
    assert told(room.model.asked[-1])[0][-len(shown) :] in (shown, [])  # told once: the roll may forget it now
