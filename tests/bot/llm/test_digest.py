"""The provider without a model: what it tells is what the frames hold."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from bot.llm import build_model
from bot.prompt import ModelMessage, model_messages, said
from crdt import PipelineEvent, TranscriptEntry, audit_line

ALICE = "@alice:example.org"
GAP = "events between 3 and 9 were dropped"
FOLD = "12 earlier events (seq 10-21) omitted"

Facts = tuple[str, str, str, str]


def _ask(text: str, *facts: Facts | str, context: list[str] | None = None) -> TranscriptEntry:
    """A user's entry; facts are events, or lines as they are."""
    lines = [fact if isinstance(fact, str) else audit_line(PipelineEvent(*fact)) for fact in facts]
    return TranscriptEntry("user", "$1", said(ALICE, text), lines, context or [])


ANSWERED = TranscriptEntry("assistant", "$1", "As I said.")
STARTED: Facts = ("42", "1_todo", "2_current", "Started")
GATES: Facts = ("42", "2_current", "3_qa", "GatesStarted")
MERGED: Facts = ("9", "4_code_review", "5_done", "Merged")
FAILED: Facts = ("10", "3_qa", "3_qa", "TestsFailed")


async def _reply(*transcript: TranscriptEntry) -> str:
    model = build_model("digest")
    await model.check()
    reply = await model.reply(model_messages("", transcript, budget_tokens=100_000))
    await model.aclose()
    assert (reply.input_tokens, reply.output_tokens) == (None, None)
    return reply.text


async def test_new_events_are_told_story_by_story_in_order() -> None:
    text = await _reply(_ask("hi"), ANSWERED, _ask("what's up?", STARTED, MERGED, GATES))
    assert text == (
        "Since we last spoke, 3 things happened:\n"
        "\n"
        "- **Story 42** is now in 3_qa:\n"
        "  - went from 1_todo to 2_current (Started)\n"
        "  - went from 2_current to 3_qa (GatesStarted)\n"
        "- **Story 9** went from 4_code_review to 5_done (Merged)"
    )


async def test_the_first_reply_does_not_claim_to_have_spoken_before() -> None:
    assert (await _reply(_ask("hi", GATES))).startswith("So far, 1 thing happened:")


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        (("1", "a", "b", "X"), "went from a to b (X)"),
        (("1", "a", "a", "X"), "stayed in a (X)"),
        (("1", "", "b", "X"), "entered b (X)"),
        (("1", "a", "", "X"), "left a (X)"),
        (("1", "", "", "X"), "reported X"),
    ],
)
async def test_each_kind_of_step_reads_well(fact: Facts, words: str) -> None:
    assert f"- **Story 1** {words}" in await _reply(_ask("hi", fact))


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ((("1", "a", "", "X"), ("1", "", "", "Y")), "**Story 1** has left a:"),
        ((("1", "", "", "X"), ("1", "", "", "Y")), "**Story 1** is in no stage that I know of:"),
        ((("1", "", "a", "X"), ("1", "", "", "Y")), "**Story 1** is now in a:"),
    ],
)
async def test_a_story_of_several_steps_says_where_it_is(facts: tuple[Facts, ...], words: str) -> None:
    assert words in await _reply(_ask("hi", *facts))


async def test_lost_and_omitted_events_are_said_plainly() -> None:
    text = await _reply(_ask("hi"), ANSWERED, _ask("news?", GAP, FOLD, GATES))
    assert text.startswith("Since we last spoke, 13 things happened; here are the newest 1:")
    assert "- Events 3 to 9 are lost: they were dropped before I could read them." in text
    assert "- 12 earlier events (numbers 10 to 21) did not fit in here." in text


async def test_a_gap_alone_is_no_silence() -> None:
    gap = "events between 2026-01-01T00:00:00Z and 2026-01-01T00:05:00Z were dropped"
    text = await _reply(_ask("hi"), ANSWERED, _ask("news?", gap))
    assert text.startswith("Since we last spoke, I missed something in the pipeline:")
    assert "Events between 2026-01-01T00:00:00Z and 2026-01-01T00:05:00Z are lost" in text


async def test_a_line_that_it_cant_read_is_shown_as_it_is() -> None:
    assert "- something \\*else\\*" in await _reply(_ask("hi", "something *else*"))


async def test_when_nothing_happened_it_says_so_and_what_can_be_asked() -> None:
    text = await _reply(_ask("hi", GATES), ANSWERED, _ask("news?"))
    assert text == (
        "Nothing new happened in the pipeline since we last spoke. "
        "Ask for the *status* to see where every story stands, or name one, like 42."
    )
    assert await _reply(_ask("hi"), ANSWERED, _ask("news?")) == (
        "Nothing new happened in the pipeline since we last spoke."
    )


async def test_before_any_event_it_greets() -> None:
    assert (await _reply(_ask("hi"))).startswith("Hello! I have not heard of any pipeline event yet.")


async def test_status_shows_every_story_by_its_number() -> None:
    text = await _reply(_ask("hi", STARTED, FAILED), ANSWERED, _ask("Status please", MERGED, GATES))
    assert text.endswith(
        "| Story | Stage  | Last event   |\n"
        "| ----- | ------ | ------------ |\n"
        "| 9     | 5_done | Merged       |\n"
        "| 10    | 3_qa   | TestsFailed  |\n"
        "| 42    | 3_qa   | GatesStarted |"
    )


async def test_a_long_status_says_how_many_more_there_are() -> None:
    text = await _reply(_ask("status", *((str(n), "", "a", "X") for n in range(60))))
    assert text.count("\n| ") == 52
    assert text.endswith("... and 10 more.")


async def test_a_story_that_is_named_is_recalled() -> None:
    history = (_ask("hi", STARTED, MERGED), ANSWERED, _ask("and?", GATES), ANSWERED)
    assert await _reply(*history, _ask("where's #42?")) == (
        "**Story 42** is now in 3_qa. Its steps so far:\n"
        "\n"
        "- went from 1_todo to 2_current (Started)\n"
        "- went from 2_current to 3_qa (GatesStarted)\n"
        "\n"
        "Nothing new happened in the pipeline since we last spoke."
    )
    assert "Story 42" not in await _reply(*history, _ask("where's 142?"))


async def test_of_a_long_story_the_last_steps_are_recalled() -> None:
    steps = [("7", str(n), str(n + 1), "Moved") for n in range(14)]
    text = await _reply(_ask("hi", *steps), ANSWERED, _ask("7?"))
    assert "Its last 10 of 14 steps:" in text
    assert text.count("went from") == 10


@pytest.mark.parametrize("stage", ["4_code_review", "code_review", "code review", "Code Review"])
async def test_a_stage_that_is_named_lists_who_is_there(stage: str) -> None:
    there = ("11", "3_qa", "4_code_review", "Passed")
    text = await _reply(_ask("hi", there, MERGED), ANSWERED, _ask(f"what is in {stage}?"))
    assert text.startswith("In **4_code_review** now: 11.")


async def test_an_empty_stage_is_said_to_be_empty() -> None:
    text = await _reply(_ask("hi", GATES), ANSWERED, _ask("who is in 2_current?"))
    assert text.startswith("No story is in **2_current** now.")


async def test_what_sort_of_event_is_asked_for_is_found_by_its_stem() -> None:
    text = await _reply(_ask("hi", GATES, FAILED), ANSWERED, _ask("did anything fail?"))
    assert text.startswith("**TestsFailed** happened to:\n\n- Story 10, which is now in 3_qa\n")


async def test_only_the_askers_own_last_words_are_the_question() -> None:
    aside = [said("@bob:example.org", "status of 42 is bad")]
    text = await _reply(_ask("hi", GATES), ANSWERED, _ask("any news?", context=aside))
    assert text.startswith("Nothing new")


async def test_the_same_conversation_gives_the_same_reply() -> None:
    history = (_ask("hi", STARTED, MERGED, GAP), ANSWERED, _ask("status, 42, 3_qa?", GATES, FAILED))
    assert await _reply(*history) == await _reply(*history)


async def test_it_answers_a_conversation_of_any_shape() -> None:
    model = build_model("digest")
    assert (await model.reply([])).text
    assert (await model.reply([ModelMessage("user", "no prefix")])).text
    assert (await model.reply([ModelMessage("system", "x")])).text


_names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12).filter(str.strip)
_marks = st.text("*_`[]()<>\\|~!#&;ab1 ", min_size=1, max_size=12).filter(str.strip)


@settings(deadline=None, max_examples=300)
@given(st.one_of(_names, _marks))
async def test_names_from_outside_show_as_they_are_and_mark_nothing_up(name: str) -> None:
    text = await _reply(_ask("status", (name, "", name, name)))
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    tags = set(re.findall(r"<(\w+)", html))
    assert tags <= {"p", "ul", "li", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    assert html.count("<strong>") == 1
    assert len(re.findall("<td", html)) == 3
