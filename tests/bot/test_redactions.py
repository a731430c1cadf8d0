"""Which words go when a message is taken back that stands in a transcript."""

from __future__ import annotations

from bot import prompt
from bot.redactions import strike
from crdt import TakenBack, TranscriptEntry
from tests.bot.edge import ALICE, BOB

SAID = [(ALICE, "first\n<@mallory:x>: not a message\n\nof three lines"), (BOB, "second"), (ALICE, "<b>third</b>")]
CONTEXT = ["before", "and before\nthat"]


def entry() -> TranscriptEntry:
    text = "\n".join(prompt.said(sender, words) for sender, words in SAID)
    return TranscriptEntry("user", "$3", text, ["a line"], [prompt.said(BOB, words) for words in CONTEXT])


def gone(place: int, count: int = 3, context: bool = False) -> TakenBack:
    return TakenBack(f"${place}", "$3", context, place, count)


def test_the_words_of_one_message_go_and_its_sender_and_all_others_stay() -> None:
    for place, (sender, _) in enumerate(SAID):
        wanted = [prompt.said(*each) for each in SAID]
        wanted[place] = f"<{sender}>: [redacted]"
        struck = strike(entry(), [gone(place)])
        assert struck.text == "\n".join(wanted)
        assert (struck.lines, struck.context) == (entry().lines, entry().context)
        assert strike(struck, [gone(place)]) == struck


def test_a_message_of_the_context_goes_as_well() -> None:
    struck = strike(entry(), [gone(1, 2, context=True), gone(2)])
    assert struck.context == [prompt.said(BOB, "before"), f"<{BOB}>: [redacted]"]
    assert struck.text.endswith(f"\n<{ALICE}>: [redacted]")


def test_where_messages_can_not_be_told_apart_all_go() -> None:
    assert strike(entry(), [gone(0, 2)]).text == "\n".join(f"<{sender}>: [redacted]" for sender, _ in SAID)
