from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.policy import (
    CLOCK_SKEW_MS,
    MAX_BURST_CHARACTERS,
    MAX_BURST_MESSAGES,
    Decision,
    Details,
    NextTurn,
    Rules,
    decide,
    next_turn,
)
from crdt import Message
from tests.bot.edge import ALICE, BOB, ROOM, message

NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000
RULES = Rules(allows=lambda user: user == ALICE)
ON_MENTION = replace(RULES, respond_to="mentions")
RESTORED = replace(RULES, answer_after_ms=NOW_MS)
NO_BACKLOG = replace(RULES, answer_backlog_s=0.0)
LISTED = replace(RULES, allowed_rooms=frozenset({ROOM}))


@pytest.mark.parametrize(
    ("rules", "facts", "decision"),
    [
        (RULES, {}, Decision("answer", "addressed")),
        (RULES, {"sender": BOB}, Decision("ignore", "not allowed")),
        (RULES, {"origin_ms": NOW_MS - DAY_MS}, Decision("answer", "addressed")),
        (RULES, {"origin_ms": NOW_MS - DAY_MS - 1}, Decision("context", "too old")),
        (RULES, {"origin_ms": NOW_MS + DAY_MS}, Decision("answer", "addressed")),
        (RULES, {"origin_ms": 0, "sender": BOB}, Decision("ignore", "not allowed")),
        (ON_MENTION, {}, Decision("context", "not mentioned")),
        (ON_MENTION, {"mentions_me": True}, Decision("answer", "addressed")),
        (ON_MENTION, {"mentions_me": True, "origin_ms": 0}, Decision("context", "too old")),
        (ON_MENTION, {"mentions_me": True, "sender": BOB}, Decision("ignore", "not allowed")),
        (LISTED, {}, Decision("answer", "addressed")),
        (LISTED, {"room_id": "!other:example.org"}, Decision("ignore", "room not allowed")),
        (NO_BACKLOG, {"origin_ms": NOW_MS - CLOCK_SKEW_MS - 1}, Decision("context", "too old")),
        (NO_BACKLOG, {"origin_ms": NOW_MS - CLOCK_SKEW_MS}, Decision("answer", "addressed")),  # it is live
        (RESTORED, {"origin_ms": NOW_MS - 1}, Decision("context", "from before this database")),
        (RESTORED, {"origin_ms": NOW_MS - 1, "sender": BOB}, Decision("ignore", "not allowed")),
        (RESTORED, {}, Decision("answer", "addressed")),
    ],
)
def test_the_fate_of_a_message(rules: Rules, facts: dict[str, object], decision: Decision) -> None:
    known = {"room_id": ROOM, "sender": ALICE, "mentions_me": False, "origin_ms": NOW_MS, "now_ms": NOW_MS}
    assert decide(rules, **(known | facts)) == decision  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("listed", "public", "allowed"),
    [([], False, True), ([], True, False), ([ROOM], True, True), ([ROOM], False, True), (["!other"], False, False)],
)
def test_the_bot_may_be_in_listed_rooms_and_in_private_ones_where_none_is_listed(
    listed: list[str], public: bool, allowed: bool
) -> None:
    assert replace(RULES, allowed_rooms=frozenset(listed)).allows_room(ROOM, public=public) is allowed


def test_details_come_back_as_they_were_kept() -> None:
    for details in (Details(), Details(thread_root="$root")):
        assert Details.load(details.dump()) == details
    assert Details.load("{}") == Details()


def _keys(messages: Iterable[Message]) -> list[str]:
    return [each.key for each in messages]


def _chosen(waiting: list[Message]) -> NextTurn:
    chosen = next_turn(waiting)
    assert chosen is not None
    return chosen


def test_where_nothing_waits_for_an_answer_there_is_no_turn() -> None:
    assert next_turn([]) is None
    assert next_turn([message("$1", context=True)]) is None


def test_a_burst_is_one_turn_that_answers_the_newest() -> None:
    chosen = _chosen([message("$1"), message("$2"), message("$3")])
    assert (chosen.key, _keys(chosen.said), chosen.newest.key) == ("$3", ["$1", "$2", "$3"], "$3")


def test_a_burst_ends_where_somebody_speaks_in_another_thread() -> None:
    thread = Details(thread_root="$root").dump()
    waiting = [message("$1", details=thread), message("$2", details=thread), message("$3"), message("$4")]
    assert _keys(_chosen(waiting).said) == ["$1", "$2"]
    assert _keys(_chosen(waiting[2:]).said) == ["$3", "$4"]
    assert _keys(_chosen([waiting[2], waiting[0]]).said) == ["$3"]


def test_a_burst_has_a_limit_of_messages() -> None:
    waiting = [message(f"${n}") for n in range(MAX_BURST_MESSAGES + 1)]
    assert len(_chosen(waiting).said) == MAX_BURST_MESSAGES


def test_a_burst_has_a_limit_of_characters_but_its_first_message_is_always_in_it() -> None:
    half = "x" * (MAX_BURST_CHARACTERS // 2)
    assert _keys(_chosen([message("$1", half), message("$2", half), message("$3", "y")]).said) == ["$1", "$2"]
    assert _keys(_chosen([message("$1", half * 3), message("$2", "y")]).said) == ["$1"]


def test_context_from_before_the_answered_message_is_folded_in_and_what_follows_waits() -> None:
    waiting = [message("$1", context=True), message("$2"), message("$3", context=True), message("$4")]
    assert _keys(_chosen(waiting).context) == ["$1", "$3"]
    assert _keys(_chosen([*waiting[:2], message("$5", context=True)]).context) == ["$1"]


def test_a_turn_that_was_begun_goes_on_with_what_it_took() -> None:
    waiting = [
        message("$0", context=True),
        message("$1", turn_key="$2"),
        message("$2", turn_key="$2"),
        message("$3"),
    ]
    chosen = _chosen(waiting)
    assert (chosen.key, _keys(chosen.said), chosen.context) == ("$2", ["$1", "$2"], ())


def test_a_turn_that_was_begun_comes_first_also_where_something_older_waits() -> None:
    waiting = [message("$1"), message("$2", turn_key="$2"), message("$3")]
    assert _keys(_chosen(waiting).said) == ["$2"]


_THREADS = st.sampled_from([None, "$a", "$b"])
_SAID = st.tuples(st.booleans(), _THREADS, st.integers(1, MAX_BURST_CHARACTERS + 10))


@given(st.lists(_SAID, max_size=60), st.lists(st.booleans(), max_size=60), st.data())
def test_every_message_ends_in_exactly_one_turn_however_often_turns_die(
    said: list[tuple[bool, str | None, int]], deaths: list[bool], data: st.DataObject
) -> None:
    coming = [
        message(f"${n}", "x" * size, context=context, details=Details(thread).dump())
        for n, (context, thread, size) in enumerate(said)
    ]
    triggers = [each.key for each in coming if not each.context]
    inbox: list[Message] = []
    answered: list[str] = []
    folded: list[str] = []
    while coming or next_turn(inbox):
        arrived = data.draw(st.integers(0, len(coming)))
        inbox, coming = [*inbox, *coming[:arrived]], coming[arrived:]
        chosen = next_turn(inbox)
        if chosen is None:
            inbox, coming = [*inbox, *coming], []
            continue
        assert chosen.key == chosen.newest.key
        folded += _keys(chosen.context)
        taken = set(_keys(chosen.said))
        gone = set(_keys(chosen.context))
        inbox = [replace(m, turn_key=chosen.key) if m.key in taken else m for m in inbox if m.key not in gone]
        if deaths and deaths.pop():
            continue
        answered += _keys(chosen.said)
        inbox = [each for each in inbox if each.key not in taken]
    assert answered == triggers
    assert len(set(folded)) == len(folded)
