"""What every provider's text passes through."""

from __future__ import annotations

import pytest

from bot.llm.port import clean_reply


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (" hello \n", "hello"),
        ("a\x00b\x1bc\x7fd\x85e\x0c", "abcde"),
        ("one\r\ntwo\rthree\tfour", "one\ntwo\nthree\tfour"),
        ("half \ud83d pair", "half  pair"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
        ("\x00 \n", ""),
        ("\u200b", ""),
        ("\ufeff\u2060 \u200d", ""),
        ("\u200bx", "\u200bx"),
    ],
)
def test_a_reply_keeps_nothing_that_cant_be_stored_or_sent(text: str, clean: str) -> None:
    assert clean_reply(text) == clean
