from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bot.ingest.clean import MAX_LENGTH, clean_event, clean_name, clean_text
from crdt import PipelineEvent, audit_line, parse_audit_line, validate_event

HOSTILE = st.text(alphabet=st.characters(), max_size=300) | st.text(
    alphabet=[*'\n\r\t"\\<>/_\u202e\u2028\x00\ud800＜\U000e0041'], max_size=300
)


@given(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
def test_whatever_a_sender_writes_becomes_one_line_that_the_log_takes(a: str, b: str, c: str, d: str) -> None:
    event = clean_event(PipelineEvent("story" + a, b, c, "event" + d))
    validate_event(event)
    line = audit_line(event)
    assert len(line.splitlines()) == 1
    assert parse_audit_line(line) == event


def test_a_title_that_is_too_long_is_cut_where_one_sees_it() -> None:
    assert clean_text("x" * 201) == "x" * 199 + "…"
    assert clean_text("x" * 200) == "x" * 200


def test_names_that_begin_alike_stay_apart() -> None:
    one, other = clean_name("pkg:oci/" + "a" * 300 + "1"), clean_name("pkg:oci/" + "a" * 300 + "2")
    assert one != other
    assert len(one) == len(other) == MAX_LENGTH


def test_what_can_forge_a_line_becomes_a_space() -> None:
    assert clean_text('fix\n\npipeline_event story_id="7"\u202e\u2028done\t') == 'fix pipeline_event story_id="7" done'
