from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.ingest.refusals import Malformed
from bot.ingest.strict_json import MAX_DEPTH, parse_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_whatever_is_json_comes_back_as_it_was(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")) == value


@given(st.binary())
def test_bytes_of_any_kind_are_read_or_refused_but_never_crash(body: bytes) -> None:
    try:
        parse_json(body)
    except Malformed:
        return


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{} {}", "not JSON"),
        (b'{"a": 1,}', "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'"\xff"', "not UTF-8: byte 1"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b'{"a": {"b": 1, "b": 1}}', "same key twice"),
        (b'{"a": 1, "\\u0061": 2}', "same key twice"),
        (b"[NaN]", "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "too large"),
        (b"1" * 5_000, "too many digits"),
    ],
)
def test_what_parsers_disagree_about_is_refused(body: bytes, says: str) -> None:
    with pytest.raises(Malformed, match=says):
        parse_json(body)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"k":', b"}")])
def test_nesting_is_allowed_up_to_the_limit_and_no_further(opening: bytes, closing: bytes) -> None:
    parse_json(opening * MAX_DEPTH + b"1" + closing * MAX_DEPTH)
    for depth in (MAX_DEPTH + 1, 1_000, 100_000):
        with pytest.raises(Malformed, match="nests deeper"):
            parse_json(opening * depth + b"1" + closing * depth)
        with pytest.raises(Malformed, match="nests deeper"):
            parse_json(opening * depth)


def test_brackets_inside_strings_are_no_nesting() -> None:
    texts = ["[" * 100, '"' + "{" * 100, "\\" + "[" * 100, '\\"' + "[" * 100, "{[\\"]
    assert parse_json(json.dumps(texts).encode()) == texts


def test_many_siblings_are_no_nesting() -> None:
    assert parse_json(b"[" + b",".join([b'{"a":[]}'] * 5_000) + b"]") == [{"a": []}] * 5_000


@pytest.mark.parametrize(
    "hostile", [b"[]," * 300_000, b'"\\' * 400_000, b'\\"' * 400_000, b'"' * 900_000, b"[{" * 40 + b'"\\"' * 250_000]
)
def test_a_hostile_mebibyte_costs_far_less_than_a_second(hostile: bytes) -> None:
    body = b"[" * 20 + b"{" * 10 + b"[],[],[]," + hostile
    before = time.process_time()
    with pytest.raises(Malformed):
        parse_json(body)
    assert time.process_time() - before < 1.0
