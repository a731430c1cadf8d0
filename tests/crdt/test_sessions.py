"""Sessions: what a room is told, once; turns that are begun again; rolls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from crdt import (
    GAP_PIPELINE_EVENT,
    SINGLE_SLED,
    Delivery,
    Edit,
    LlmSessionView,
    PipelineEvent,
    RecordedEvent,
    Store,
    Turn,
    UnknownScope,
    verify_database,
)
from tests.crdt.samples import OTHER_ROOM, ROOM, event, events, lines, message, told


async def exchange(store: Store, key: str, session_id: str = ROOM) -> Turn:
    """One whole turn: begun and answered."""
    turn = await store.begin_turn(session_id, key, f"question {key}")
    await store.complete_turn(turn, f"answer {key}")
    return turn


class Named(str, Enum):  # noqa: UP042 - its members print as `Named.…`
    """Names as a program may keep them."""

    ROOM = "!named:example.org"
    PERSONA = "dispatcher"
    KEY = "$1"
    DELIVERY = "d1"
    KIND = "m.room.message"
    SETTING = "device"


async def test_names_derived_from_str_are_known_by_their_characters_after_a_restart(path: Path) -> None:
    async with Store.open(path) as store:
        await store.write_llm_session(Named.ROOM, persona_name=Named.PERSONA, scope=SINGLE_SLED)
        turn = await store.begin_turn(Named.ROOM, Named.KEY, "hello")
        await store.write_settings({Named.SETTING: Named.PERSONA})
        await store.settle([Named.KEY], "answered", [Delivery(Named.DELIVERY, Named.ROOM, "{}", Named.KIND)])
    assert verify_database(path).problems == ()
    async with Store.open(path) as store:
        assert await store.read_llm_session("!named:example.org") == LlmSessionView(
            "!named:example.org", "dispatcher", SINGLE_SLED, {}
        )
        assert (await store.begin_turn("!named:example.org", "$1", "")).attempt == 2
        await store.complete_turn(turn, "hi")
        assert await store.due_deliveries() == [Delivery("d1", "!named:example.org", "{}", "m.room.message")]
        assert await store.read_setting("device") == "dispatcher"


async def test_a_name_that_is_no_text_leads_to_the_session_of_its_messages(store: Store) -> None:
    room, key = "!r\udfff", "$\ud800"
    assert await store.read_llm_session(room) is None
    assert await store.read_transcript(room) == []
    await store.admit([message(key, session_id=room)], edits=[Edit(key, "@alice:example.org", "hi")])
    await store.write_llm_session(room, persona_name="p\ud800", scope=SINGLE_SLED)
    (said,) = await store.waiting(room)
    turn = await store.begin_turn(room, key, said.text, said=[said])
    assert turn == Turn("!r\ufffd", "$\ufffd", "hi")
    await store.admit([], redactions=[key])
    await store.complete_turn(turn, "hello")
    assert await store.redact_session(room, lambda entry, _: replace(entry, text="")) == 1
    assert [entry.text for entry in await store.read_transcript(room)] == ["", "hello"]
    await store.roll_session(room, 0)
    assert await store.assemble_and_advance_session(room) == []
    assert await store.move_session(room, "!new\ud800")
    assert await store.read_llm_session("!new\ufffd") == LlmSessionView("!new\ufffd", "p\ufffd", SINGLE_SLED, {})


async def test_a_session_is_written_read_and_listed_nowhere_else(store: Store) -> None:
    assert await store.read_llm_session(ROOM) is None
    await store.write_llm_session(ROOM, persona_name="dispatcher", scope=SINGLE_SLED)
    assert await store.read_llm_session(ROOM) == LlmSessionView(ROOM, "dispatcher", SINGLE_SLED, {})
    assert await store.read_llm_session(OTHER_ROOM) is None


async def test_writing_a_session_never_touches_its_marks(path: Path) -> None:
    async with Store.open(path, sled_id="build-1") as store:
        await store.append_events(events(1, 3))
        await store.assemble_and_advance_session(ROOM)
        await store.write_llm_session(ROOM, persona_name="dispatcher", scope=SINGLE_SLED)
        await store.write_llm_session(ROOM, persona_name="poet", scope=SINGLE_SLED)
        assert await store.read_llm_session(ROOM) == LlmSessionView(ROOM, "poet", SINGLE_SLED, {"build-1": 3})
        assert await store.assemble_and_advance_session(ROOM) == []
    async with Store.open(path) as store:
        assert await store.read_llm_session(ROOM) == LlmSessionView(ROOM, "poet", SINGLE_SLED, {"build-1": 3})


@pytest.mark.parametrize("scope", ["all-sleds", "", "SINGLE-SLED", None])
async def test_a_scope_that_is_not_known_is_refused(store: Store, scope: str) -> None:
    with pytest.raises(UnknownScope) as caught:
        await store.write_llm_session(ROOM, persona_name="dispatcher", scope=scope)
    assert "single-sled" in str(caught.value)
    assert await store.read_llm_session(ROOM) is None


async def test_a_stored_scope_that_is_not_known_is_read_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Store.open(path, sled_id="build-1") as store:
        with monkeypatch.context() as a_newer_version:
            a_newer_version.setattr("crdt.sessions.SINGLE_SLED", "all-sleds")
            await store.write_llm_session(ROOM, persona_name="dispatcher", scope="all-sleds")
    async with Store.open(path) as store:
        expected = LlmSessionView(ROOM, "dispatcher", "all-sleds", {})
        assert await store.read_llm_session(ROOM) == expected
        await exchange(store, "$1")
        await store.roll_session(ROOM, 0)
        assert await store.read_llm_session(ROOM) == expected


async def test_each_event_is_assembled_once_for_each_session(store: Store) -> None:
    await store.append_events(events(1, 3))
    assert await store.assemble_and_advance_session(ROOM) == lines(1, 3)
    assert await store.assemble_and_advance_session(ROOM) == []
    await store.append_event(event(4))
    assert await store.assemble_and_advance_session(ROOM) == lines(4, 4)
    assert await store.assemble_and_advance_session(OTHER_ROOM) == lines(1, 4)
    assert await store.read_transcript(ROOM) == []


async def test_nothing_new_writes_nothing_and_makes_no_session(store: Store) -> None:
    commits = store._database.commits
    assert await store.assemble_and_advance_session(ROOM) == []
    assert await store.read_llm_session(ROOM) is None
    assert store._database.commits == commits


async def test_nothing_new_writes_nothing_even_when_a_roll_is_due(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crdt.sessions.ROLL_AFTER_ENTRIES", 2)
    await exchange(store, "$1")
    commits = store._database.commits
    assert await store.assemble_and_advance_session(ROOM) == []
    assert store._database.commits == commits


async def test_a_session_that_was_never_written_is_made_by_what_it_is_told(store: Store) -> None:
    await store.append_event(event(1))
    await store.assemble_and_advance_session(ROOM)
    assert await store.read_llm_session(ROOM) == LlmSessionView(ROOM, "", SINGLE_SLED, {"build-1": 1})
    await store.begin_turn(OTHER_ROOM, "$1", "hello")
    assert await store.read_llm_session(OTHER_ROOM) == LlmSessionView(OTHER_ROOM, "", SINGLE_SLED, {"build-1": 1})


async def test_more_events_than_a_segment_holds_are_assembled_without_a_cap(path: Path) -> None:
    async with Store.open(path, segment_events=50) as store:
        await store.append_events(events(1, 700))
        assert await store.assemble_and_advance_session(ROOM) == lines(1, 700)


async def test_one_line_is_logged_for_an_assemble_that_found_something(store: Store) -> None:
    await store.append_events(events(1, 3))
    with capture_logs() as logs:
        await store.assemble_and_advance_session(ROOM)
        await store.assemble_and_advance_session(ROOM)
    assert [entry for entry in logs if entry["event"] == "assemble"] == [
        {"event": "assemble", "session": ROOM, "sled_entries": 3, "gap_count": 0, "log_level": "info"}
    ]


async def test_message_text_is_never_logged_at_info_or_above(store: Store) -> None:
    await store.append_event(event(1))
    with capture_logs() as logs:
        await store.admit([message("$1", "the secret word")])
        turn = await store.begin_turn(ROOM, "$1", "the secret word", [message("$0", "the secret word")])
        await store.complete_turn(turn, "the secret word")
    assert "secret" not in str([entry for entry in logs if entry["log_level"] != "debug"])


async def test_a_gap_line_then_a_fold_line_then_the_newest_events(path: Path) -> None:
    async with Store.open(path, segment_events=5, retention_events=10) as store:
        await store.append_events(events(1, 2))
        await store.begin_turn(ROOM, "$1", "hello")
        await store.append_events(events(3, 30))
        await store.housekeep()
        with capture_logs() as logs:
            turn = await store.begin_turn(ROOM, "$2", "hello", max_lines=4)
        assert turn.lines == [
            "events between 3 and 20 were dropped",
            "6 earlier events (seq 21-26) omitted",
            *lines(27, 30),
        ]
        (entry,) = [entry for entry in logs if entry["event"] == "assemble"]
        assert (entry["sled_entries"], entry["gap_count"]) == (10, 1)
        assert (await store.begin_turn(ROOM, "$3", "hello", max_lines=4)).lines == []


async def test_retention_keeps_at_least_what_it_says(path: Path) -> None:
    async with Store.open(path, segment_events=10, retention_events=25) as store:
        for count in range(1, 8):
            await store.append_events(events(count * 10 - 9, count * 10))
            await store.housekeep()
            kept = await store.read_events()
            assert len(kept) == min(count * 10, 30)
            assert kept[-1].event_seq == count * 10
        assert (await store.read_events(after=0, limit=1))[0].event_seq == 41


async def test_retention_by_age_keeps_what_is_young_whatever_its_number(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_800_000_000_000
    monkeypatch.setattr("crdt.store._now_ms", lambda: now)
    async with Store.open(path, segment_events=10, retention_days=2) as store:
        await store.append_events(events(1, 25))
        now += 2 * 86_400_000
        await store.housekeep()
        assert len(await store.read_events()) == 25
        now += 1
        await store.housekeep()
        assert [one.event_seq for one in await store.read_events()] == [21, 22, 23, 24, 25]
    async with Store.open(path, segment_events=10, retention_days=2, retention_events=1000) as store:
        await store.append_events(events(26, 60))
        now += 10 * 86_400_000
        await store.housekeep()
        assert len(await store.read_events()) == 40
        assert await store.assemble_and_advance_session(ROOM) == lines(21, 60)


async def test_only_a_session_from_before_is_told_of_what_retention_took(path: Path) -> None:
    async with Store.open(path, sled_id="build-1", segment_events=5, retention_events=5) as store:
        await store.write_llm_session(ROOM, persona_name="early", scope=SINGLE_SLED)
        await store.append_events(events(1, 22))
        await store.housekeep()
        await store.write_llm_session("!late", persona_name="late", scope=SINGLE_SLED)
        await store.append_events(events(23, 29))
        await store.housekeep()
        assert await store.assemble_and_advance_session(ROOM) == [
            "events between 1 and 20 were dropped",
            *lines(21, 29),
        ]
        assert await store.assemble_and_advance_session("!late") == [
            "events between 16 and 20 were dropped",
            *lines(21, 29),
        ]
        assert await store.assemble_and_advance_session("!new") == lines(21, 29)
        assert (await store.begin_turn("!newer", "$1", "hello")).lines == lines(21, 29)
    async with Store.open(path, segment_events=5, retention_events=5) as store:
        assert await store.assemble_and_advance_session("!new") == []
        view = await store.read_llm_session("!late")
        assert view is not None
        assert view.high_water == {"build-1": 29}


async def test_everything_gone_is_told_in_one_gap_line(path: Path) -> None:
    async with Store.open(path, segment_events=1, retention_events=1) as store:
        await store.write_llm_session(ROOM, persona_name="", scope=SINGLE_SLED)
        await store.append_events(events(1, 100))
        await store.housekeep()
        assert (await store.begin_turn(ROOM, "$1", "hello")).lines == [
            "events between 1 and 99 were dropped",
            *lines(100, 100),
        ]


@pytest.mark.parametrize(
    ("max_lines", "expected"),
    [
        (0, ["9 earlier events (seq 1-9) omitted"]),
        (9, lines(1, 9)),
        (8, ["1 earlier events (seq 1-1) omitted", *lines(2, 9)]),
    ],
)
async def test_a_turn_shows_at_most_max_lines_events(store: Store, max_lines: int, expected: list[str]) -> None:
    await store.append_events(events(1, 9))
    assert (await store.begin_turn(ROOM, "$1", "hello", max_lines=max_lines)).lines == expected
    assert (await store.begin_turn(ROOM, "$2", "hello", max_lines=max_lines)).lines == []


def odd(one: RecordedEvent) -> bool:
    """A room's filter that passes every second event."""
    return one.event_seq % 2 == 1


@pytest.mark.parametrize("max_lines", [0, -1, -5])
@pytest.mark.parametrize("keep", [None, lambda _: True])
async def test_a_turn_that_may_show_no_event_names_all_of_them_and_loses_none(
    store: Store, max_lines: int, keep: Callable[[RecordedEvent], bool] | None
) -> None:
    await store.append_events(events(1, 3))
    turn = await store.begin_turn(ROOM, "$1", "", max_lines=max_lines, keep=keep)
    assert turn.lines == ["3 earlier events (seq 1-3) omitted"]
    await store.complete_turn(turn, "")
    await store.append_events(events(4, 9))
    assert told((await store.begin_turn(ROOM, "$2", "")).lines) == [4, 5, 6, 7, 8, 9]


async def test_marks_pass_what_the_rooms_filter_leaves_out(store: Store) -> None:
    await store.append_events(events(1, 4))
    assert (await store.begin_turn(ROOM, "$1", "hello", keep=odd)).lines == [*lines(1, 1), *lines(3, 3)]
    await store.append_event(event(6, story_id="6"))
    assert told((await store.begin_turn(ROOM, "$2", "hello")).lines) == [6]
    assert (await store.begin_turn(OTHER_ROOM, "$1", "hello", keep=lambda one: False)).lines == []
    assert (await store.begin_turn(OTHER_ROOM, "$2", "hello")).lines == []


async def test_no_filter_hides_that_events_were_lost(store: Store) -> None:
    await store.append_event(PipelineEvent("", "10:00", "10:05", GAP_PIPELINE_EVENT))
    turn = await store.begin_turn(ROOM, "$1", "hello", keep=lambda one: False)
    assert turn.lines == ["events between 10:00 and 10:05 were dropped"]


async def test_a_filtered_turn_folds_what_passed_beyond_max_lines(store: Store) -> None:
    await store.append_events(events(1, 9))
    turn = await store.begin_turn(ROOM, "$1", "hello", max_lines=2, keep=odd)
    assert turn.lines == ["6 earlier events (seq 1-6) omitted", *lines(7, 7), *lines(9, 9)]
    assert (await store.begin_turn("!c", "$1", "x", max_lines=0, keep=odd)).lines == [
        "9 earlier events (seq 1-9) omitted"
    ]
    await store.append_events(events(10, 30))
    turn = await store.begin_turn(ROOM, "$2", "hello", max_lines=2, keep=odd)
    assert turn.lines == ["17 earlier events (seq 10-26) omitted", *lines(27, 27), *lines(29, 29)]


async def test_a_filter_that_fails_begins_nothing(store: Store) -> None:
    def broken(one: RecordedEvent) -> bool:
        raise ZeroDivisionError

    await store.append_event(event(1))
    with pytest.raises(ZeroDivisionError):
        await store.begin_turn(ROOM, "$1", "hello", keep=broken)
    assert await store.read_llm_session(ROOM) is None
    turn = await store.begin_turn(ROOM, "$1", "hello")
    assert (turn.lines, turn.attempt) == (lines(1, 1), 1)
