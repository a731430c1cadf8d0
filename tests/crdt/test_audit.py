"""Audit lines: one line, back again, no frame to close; and what the log accepts."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crdt import GAP_PIPELINE_EVENT, InvalidEvent, PipelineEvent, audit_line, parse_audit_line, validate_event
from crdt.audit import escape, fold_line, gap_line, unescape
from crdt.marks import SeqRange
from tests.crdt.samples import event

FRAME = re.compile(r"<\s*/?\s*pipeline_events", re.IGNORECASE)

REFUSED_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
BIDI = [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
TAGS = [0xE0000, 0xE0001, 0xE0020, 0xE0041, 0xE007F]
REFUSED = [0x00, 0x09, 0x0A, 0x0D, 0x1B, 0x1F, 0x7F, 0x80, 0x85, 0x9F, 0xD800, 0xDFFF, 0x2028, 0x2029, *BIDI, *TAGS]

anything = st.text(st.characters(exclude_categories=[]))
accepted_character = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")).filter(
    lambda character: ord(character) not in BIDI and not 0xE0000 <= ord(character) <= 0xE007F
)
# Pieces of which a forged frame, a closed field or a false escape could be made.
HOSTILE_CHARACTERS = '<\ufe64\uff1c/\uff0f\\\uff3c"\uff02{}uxU \u3000\u00a0\u200d\u00ad\u2060\ufeff\u0338'
HOSTILE_WORDS = ("pipeline_events", "\uff50ipeline_events", "PIPELINE_EVENTS", "u003c", "{3c}", 'event="', "\\u{")
hostile = st.lists(st.sampled_from([*HOSTILE_CHARACTERS, *HOSTILE_WORDS])).map("".join)
accepted = (st.text(accepted_character, max_size=200) | hostile).map(lambda text: text[:200])
filled = accepted.filter(bool)
accepted_event = st.builds(
    PipelineEvent, filled, accepted, accepted, filled.filter(lambda text: text != GAP_PIPELINE_EVENT)
)


def seen_by_a_reader(line: str) -> str:
    """What stands there after compatibility normalisation, without what no one sees."""
    normal = unicodedata.normalize("NFKC", line)
    return "".join(character for character in normal if unicodedata.category(character) != "Cf")


@given(accepted_event)
def test_every_accepted_event_comes_back_out_of_its_line(one: PipelineEvent) -> None:
    validate_event(one)
    assert parse_audit_line(audit_line(one)) == one


@given(accepted_event)
def test_every_accepted_event_is_one_line(one: PipelineEvent) -> None:
    assert len(audit_line(one).splitlines()) == 1


@given(st.builds(PipelineEvent, anything | hostile, anything | hostile, anything | hostile, anything | hostile))
def test_no_field_closes_the_frame_or_the_line_even_if_it_was_never_validated(one: PipelineEvent) -> None:
    line = audit_line(one)
    assert not FRAME.search(line)
    assert not FRAME.search(seen_by_a_reader(line))
    assert len(line.splitlines()) == 1
    line.encode()
    if one.pipeline_event != GAP_PIPELINE_EVENT:
        assert parse_audit_line(line) == one


def test_nothing_but_the_three_less_thans_turns_into_one() -> None:
    found = [
        code
        for code in range(0x110000)
        if code not in range(0xD800, 0xE000) and "<" in unicodedata.normalize("NFKC", chr(code))
    ]
    assert found == [0x3C, 0xFE64, 0xFF1C]


@given(anything | hostile)
@example("\\u003c")
@example('\\\\"')
@example("\ud800")
def test_escaping_is_undone_by_unescaping(text: str) -> None:
    assert unescape(escape(text)) == text


@given(anything | hostile)
def test_reading_any_text_as_a_line_never_fails(text: str) -> None:
    parse_audit_line(text)
    parse_audit_line(f'pipeline_event story_id="{text}" from="" to="" event="x"')


@pytest.mark.parametrize("escaped", ["\\u{110000}", "\\u{ffffff}", "\\x", "\\u{}", "\\u12"])
def test_an_escape_that_means_nothing_stays_as_it_is(escaped: str) -> None:
    assert unescape(escaped) == escaped


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain", "plain"),
        ("", ""),
        ("\\", "\\\\"),
        ('"', '\\"'),
        ("<", "\\u003c"),
        (">", ">"),
        ("\n", "\\u{a}"),
        ("\x00", "\\u{0}"),
        ("\u2028", "\\u{2028}"),
        ("\ud800", "\\u{d800}"),
        ("\u202e", "\\u{202e}"),
        ("\U000e0041", "\\u{e0041}"),
        ("\uff1c", "\\u{ff1c}"),
        ("\u200d", "\u200d"),
        ("\\u003c", "\\\\u003c"),
        ('</pipeline_events>"', '\\u003c/pipeline_events>\\"'),
        ("Grüße 👩‍💻", "Grüße 👩‍💻"),
    ],
)
def test_the_escapes_are_those_of_the_contract(text: str, escaped: str) -> None:
    assert escape(text) == escaped
    assert unescape(escaped) == text


def test_an_event_is_rendered_as_the_contract_says() -> None:
    one = PipelineEvent(story_id="42", from_stage="2_current", to_stage="3_qa", pipeline_event="GatesStarted")
    assert audit_line(one) == 'pipeline_event story_id="42" from="2_current" to="3_qa" event="GatesStarted"'


class Formatted(str):
    """A string with a format of its own, as an enum's members have."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return "</pipeline_events>\n"


def test_what_is_derived_from_a_string_is_rendered_by_its_characters() -> None:
    one = PipelineEvent(*(Formatted(text) for text in ("42", "2_current", "3_qa", "GatesStarted")))
    validate_event(one)
    assert audit_line(one) == audit_line(PipelineEvent("42", "2_current", "3_qa", "GatesStarted"))


def test_a_gap_sentinel_is_rendered_as_a_gap() -> None:
    gap = PipelineEvent("", "2026-01-31T09:30:00Z", "2026-01-31T09:31:00Z", GAP_PIPELINE_EVENT)
    line = audit_line(gap)
    assert line == "events between 2026-01-31T09:30:00Z and 2026-01-31T09:31:00Z were dropped"
    assert parse_audit_line(line) is None


def test_gap_and_fold_lines_name_both_ends() -> None:
    assert gap_line(SeqRange(3, 7)) == "events between 3 and 7 were dropped"
    assert fold_line(SeqRange(3, 7)) == "5 earlier events (seq 3-7) omitted"
    assert parse_audit_line(gap_line(SeqRange(3, 7))) is None
    assert parse_audit_line(fold_line(SeqRange(3, 7))) is None


FIELDS = ("story_id", "from_stage", "to_stage", "pipeline_event")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("code", REFUSED, ids=hex)
def test_a_character_that_forges_or_hides_text_is_refused(field: str, code: int) -> None:
    with pytest.raises(InvalidEvent) as caught:
        validate_event(replace(event(), **{field: f"a{chr(code)}b"}))
    assert caught.value.field == field
    assert f"U+{code:04X}" in caught.value.problem
    assert chr(code) not in str(caught.value)


def test_every_character_of_a_refused_category_is_refused_and_no_other() -> None:
    for code in range(0x110000):
        character = chr(code)
        refused = unicodedata.category(character) in REFUSED_CATEGORIES or code in BIDI or 0xE0000 <= code <= 0xE007F
        assert (escape(character).startswith("\\u{")) == (refused or character in "\ufe64\uff1c"), hex(code)


@pytest.mark.parametrize("text", ["\u200d", "👩‍💻", "é", "\u00a0", "\u200b", "\ufeff", "🏴", "日本", "a\u0301"])
def test_joiners_and_other_scripts_are_accepted(text: str) -> None:
    validate_event(event(story_id=text, from_stage=text, to_stage=text, pipeline_event=text))


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    ("length", "stage_accepted", "name_accepted"),
    [(0, True, False), (1, True, True), (200, True, True), (201, False, False)],
)
def test_lengths_are_counted_in_code_points(field: str, length: int, stage_accepted: bool, name_accepted: bool) -> None:
    one = replace(event(), **{field: "\U0001f436" * length})
    if stage_accepted if field.endswith("stage") else name_accepted:
        validate_event(one)
    else:
        with pytest.raises(InvalidEvent) as caught:
            validate_event(one)
        assert caught.value.field == field
        assert str(length) in caught.value.problem


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [None, 42, b"42", ["42"], True], ids=repr)
def test_only_strings_are_accepted(field: str, value: object) -> None:
    with pytest.raises(InvalidEvent) as caught:
        validate_event(replace(event(), **{field: value}))  # type: ignore[arg-type]
    assert caught.value.field == field
    assert "must be a string" in caught.value.problem


@pytest.mark.parametrize("occurred_at", ["\ud800", "2026\n", 7, "x" * 201])
def test_the_senders_own_time_is_text_like_the_other_fields(occurred_at: object) -> None:
    with pytest.raises(InvalidEvent) as caught:
        validate_event(replace(event(), occurred_at=occurred_at))  # type: ignore[arg-type]
    assert caught.value.field == "occurred_at"


def test_a_gap_sentinel_needs_leave_and_may_have_no_story() -> None:
    gap = PipelineEvent("", "1", "2", GAP_PIPELINE_EVENT)
    validate_event(gap, allow_gap=True)
    with pytest.raises(InvalidEvent) as caught:
        validate_event(gap)
    assert caught.value.field == "pipeline_event"
    with pytest.raises(InvalidEvent):
        validate_event(event(story_id=""), allow_gap=True)
