from __future__ import annotations

import pytest

from bot.ingest.payload import Incomplete, Payload

PAYLOAD = Payload({"a": {"b": "text", "n": 7, "yes": True, "none": None, "blank": " "}, "list": [{"x": "1"}, 5]})


@pytest.mark.parametrize(
    ("path", "text"), [("a.b", "text"), ("a.n", "7"), ("a.yes", ""), ("a.none", ""), ("a.blank", ""), ("a.b.c", "")]
)
def test_texts_and_whole_numbers_are_text_and_all_else_is_absent(path: str, text: str) -> None:
    assert PAYLOAD.text(path) == text


def test_what_is_needed_and_missing_is_named() -> None:
    with pytest.raises(Incomplete, match=r"it has no a\.c"):
        PAYLOAD.need("a.c")
    assert PAYLOAD.need("a.n") == "7"


def test_arrays_may_hold_anything() -> None:
    assert [item.text("x") for item in PAYLOAD.each("list")] == ["1", ""]
    assert list(PAYLOAD.each("a")) == []


def test_any_json_value_can_be_looked_into() -> None:
    values: list[object] = [None, 5, "text", [], True]
    for value in values:
        assert Payload(value).at("a.b") is None
