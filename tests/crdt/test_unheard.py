"""Lines that no model has answered survive the cuts of a transcript, as themselves or in a number."""

from __future__ import annotations

from pathlib import Path

from crdt import PipelineEvent, Store, TranscriptEntry, audit_line, fold_lines, newest_from
from crdt.unheard import MAX_CARRIED_LINES

ROOM = "!room"
TURNS = MAX_CARRIED_LINES + 150
GAP = "events between 17 and 40 were dropped"


def line(number: int) -> str:
    return audit_line(PipelineEvent(str(number), "qa", "done", "Passed"))


def turn(number: int, *, failed: bool = False) -> list[TranscriptEntry]:
    said = TranscriptEntry("user", f"${number}", f"question {number}", [line(number)])
    return [said, TranscriptEntry("assistant", f"${number}", "reply", failed=failed)]


def test_what_was_answered_is_not_carried() -> None:
    entries = [*turn(1, failed=True), *turn(2), *turn(3, failed=True), *turn(4, failed=True), *turn(5)]
    assert newest_from(entries, 8) == turn(5)
    assert newest_from(entries, 10) == []


def test_what_failed_since_the_last_reply_is_carried_in_its_order() -> None:
    entries = [*turn(1), *turn(2, failed=True), *turn(3, failed=True), *turn(4, failed=True), *turn(5)[:1]]
    kept = newest_from(entries, 6)
    assert kept[0].lines == [line(2), line(3), line(4)]
    assert kept[1:] == entries[7:]
    assert newest_from(entries, 2) == entries[2:]


def test_lines_that_are_folded_are_counted_with_those_that_were_before_and_gaps_stay() -> None:
    lines = ["1200 earlier events (seq 5-1204) omitted", line(1), GAP, "3 earlier events omitted", line(2), line(3)]
    assert fold_lines(lines, 1) == [GAP, "1205 earlier events omitted", line(3)]
    assert fold_lines(lines, 0) == [GAP, "1206 earlier events omitted"]
    assert fold_lines(lines, 6) == fold_lines(lines, 7) == lines
    assert fold_lines([GAP], 0) == [GAP]


async def test_a_long_outage_of_the_model_loses_no_line_by_the_rolls(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "musher.db") as store:
        for number in range(1, TURNS + 1):
            await store.append_event(PipelineEvent(str(number), "qa", "done", "Passed"))
            begun = await store.begin_turn(ROOM, f"${number}", "what happened?")
            await store.complete_turn(begun, "no answer", failed=True)
        entries = await store.read_transcript(ROOM)
    assert len(entries) <= 200
    lines = [each for entry in entries for each in entry.lines]
    counted = int(lines[0].removesuffix(" earlier events omitted"))
    assert lines[1:] == [line(number) for number in range(counted + 1, TURNS + 1)]
