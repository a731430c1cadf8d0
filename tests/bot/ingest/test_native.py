from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.ingest.native import MAX_EVENTS, parse_events
from bot.ingest.refusals import Malformed, Refusal, TooLarge, Unprocessable
from crdt import EventBatch, PipelineEvent

EVENT: dict[str, Any] = {
    "story_id": "42",
    "from_stage": "2_current",
    "to_stage": "3_qa",
    "pipeline_event": "GatesStarted",
}


def refusal_of(content: object) -> Unprocessable:
    with pytest.raises(Unprocessable) as caught:
        parse_events(json.dumps(content).encode())
    return caught.value


def test_a_single_object_is_one_batch_of_one_event() -> None:
    body = json.dumps(EVENT).encode()
    assert parse_events(body) == [EventBatch(events=(PipelineEvent("42", "2_current", "3_qa", "GatesStarted"),))]


def test_each_event_of_an_array_is_a_batch_of_its_own_in_order() -> None:
    batches = parse_events(json.dumps([EVENT | {"story_id": str(n)} for n in range(3)]).encode())
    assert [[event.story_id for event in batch.events] for batch in batches] == [["0"], ["1"], ["2"]]


def test_id_and_occurred_at_are_kept() -> None:
    content = EVENT | {"id": "build-7", "occurred_at": "2026-01-31T10:30:00.5+01:00"}
    (batch,) = parse_events(json.dumps(content).encode())
    assert batch.dedupe_keys == ("events:build-7",)
    assert batch.events[0].occurred_at == "2026-01-31T10:30:00.5+01:00"


def test_an_empty_array_is_no_events() -> None:
    assert parse_events(b"[]") == []


def test_a_thousand_events_pass_and_one_more_does_not() -> None:
    assert len(parse_events(json.dumps([EVENT] * MAX_EVENTS).encode())) == MAX_EVENTS
    with pytest.raises(TooLarge, match="1001 events"):
        parse_events(json.dumps([EVENT] * (MAX_EVENTS + 1)).encode())


@pytest.mark.parametrize("missing", sorted(EVENT))
def test_every_one_of_the_four_fields_is_required(missing: str) -> None:
    content = {name: value for name, value in EVENT.items() if name != missing}
    refusal = refusal_of(content)
    assert (refusal.field, refusal.message) == (missing, f"{missing} is missing; nothing was stored")


@pytest.mark.parametrize("name", ["story_id", "from_stage", "to_stage", "pipeline_event", "id", "occurred_at"])
@pytest.mark.parametrize(
    ("value", "called"),
    [(7, "a number"), (1.5, "a number"), (True, "a boolean"), (None, "null"), ([], "an array"), ({}, "an object")],
)
def test_a_field_of_a_wrong_type_is_named(name: str, value: object, called: str) -> None:
    refusal = refusal_of([EVENT, EVENT | {name: value}])
    assert refusal.field == f"[1].{name}"
    assert refusal.message == f"[1].{name} must be a string, not {called}; nothing was stored"


def test_a_misspelt_key_is_named_as_it_was_sent() -> None:
    misspelt = {"stroy_id" if name == "story_id" else name: value for name, value in EVENT.items()}
    assert refusal_of(misspelt).field == "stroy_id"
    assert refusal_of([EVENT, EVENT, EVENT, misspelt]).field == "[3].stroy_id"


def test_a_huge_key_is_not_sent_back_whole() -> None:
    assert len(refusal_of(EVENT | {"k" * 10_000: ""}).field or "") < 100


def test_a_key_with_a_lone_surrogate_can_be_named_in_json() -> None:
    with pytest.raises(Unprocessable) as caught:
        parse_events(b'{"\\ud800": ""}')
    assert json.dumps(caught.value.field) == '"\\ud800"'


@pytest.mark.parametrize(
    ("content", "field"), [("text", None), (7, None), (None, None), (True, None), ([EVENT, []], "[1]"), (["x"], "[0]")]
)
def test_what_is_no_object_is_no_event(content: object, field: str | None) -> None:
    refusal = refusal_of(content)
    assert refusal.field == field
    assert "must be an object" in refusal.message


def test_the_gap_sentinel_is_the_logs_own() -> None:
    assert refusal_of([EVENT | {"pipeline_event": "__gap__"}]).field == "[0].pipeline_event"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("story_id", ""),
        ("story_id", "x" * 201),
        ("from_stage", "a\nb"),
        ("to_stage", "\u202e"),
        ("pipeline_event", "\ud800"),
        ("pipeline_event", ""),
        ("id", ""),
        ("id", "x" * 201),
        ("id", "\ud800"),
        ("id", "a\x00b"),
    ],
)
def test_a_value_that_the_log_refuses_is_refused_at_the_door(name: str, value: str) -> None:
    assert refusal_of(EVENT | {name: value}).field == name


@pytest.mark.parametrize("name", ["story_id", "from_stage", "to_stage", "pipeline_event", "id"])
def test_two_hundred_characters_of_any_script_pass(name: str) -> None:
    parse_events(json.dumps(EVENT | {name: "🛷" * 200}).encode())


@pytest.mark.parametrize(
    "stamp",
    [
        "2026-01-31T09:30:00Z",
        "2026-01-31t09:30:00z",
        "2026-01-31T09:30:00.123456789-23:59",
        "2024-02-29T00:00:00+00:00",
        "2016-12-31T23:59:60Z",
    ],
)
def test_times_of_rfc_3339_pass(stamp: str) -> None:
    (batch,) = parse_events(json.dumps(EVENT | {"occurred_at": stamp}).encode())
    assert batch.events[0].occurred_at == stamp


@pytest.mark.parametrize(
    "stamp",
    [
        "",
        "yesterday",
        "2026-01-31",
        "2026-01-31T09:30:00",
        "2026-01-31 09:30:00Z",
        "2026-01-31T09:30Z",
        "2026-02-29T09:30:00Z",
        "2026-13-01T09:30:00Z",
        "2026-01-31T24:00:00Z",
        "2026-01-31T09:30:61Z",
        "2026-01-31T09:30:00.Z",
        "2026-01-31T09:30:00+24:00",
        "2026-01-31T09:30:00+0100",
        "٢٠٢٦-01-31T09:30:00Z",
        "2026-01-31T09:30:00Z\n",
    ],
)
def test_times_without_an_offset_or_off_the_calendar_are_refused(stamp: str) -> None:
    assert refusal_of(EVENT | {"occurred_at": stamp}).field == "occurred_at"


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["story_id", "from_stage", "to_stage", "pipeline_event", "id", "occurred_at", "x"]),
            st.none() | st.integers() | st.text(max_size=5) | st.integers(195, 205).map("x".__mul__),
        ),
        max_size=3,
    )
)
def test_every_array_of_objects_is_taken_whole_or_refused(contents: list[dict[str, object]]) -> None:
    try:
        batches = parse_events(json.dumps(contents).encode())
    except Refusal as refusal:
        assert isinstance(refusal, Unprocessable)
        assert refusal.field is not None
        assert refusal.field.startswith("[")
    else:
        assert [batch.events[0].story_id for batch in batches] == [content["story_id"] for content in contents]


def test_what_is_not_json_is_malformed() -> None:
    with pytest.raises(Malformed):
        parse_events(b"story_id=42")
