"""Turns: begun, begun again, completed once, and what they leave when something fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from crdt import Store, StoreFull, TranscriptEntry, Turn, UnknownTurn
from tests.crdt.breakage import fill_disk, free_disk
from tests.crdt.samples import ROOM, event, events, lines, look, message


async def exchange(store: Store, key: str) -> None:
    """One whole turn: begun and answered."""
    turn = await store.begin_turn(ROOM, key, f"question {key}")
    await store.complete_turn(turn, f"answer {key}")


async def test_a_turn_holds_what_is_new_and_what_was_said(store: Store) -> None:
    await store.append_events(events(1, 2))
    context = [message("$a", "<@bob:example.org>: earlier")]
    turn = await store.begin_turn(ROOM, "$1", "how is it going?", context)
    assert turn == Turn(ROOM, "$1", "how is it going?", lines(1, 2), ["<@bob:example.org>: earlier"], 1, None, False)
    await store.complete_turn(turn, "well")
    assert await store.read_transcript(ROOM) == [
        TranscriptEntry("user", "$1", "how is it going?", lines(1, 2), ["<@bob:example.org>: earlier"]),
        TranscriptEntry("assistant", "$1", "well"),
    ]


async def test_a_turn_begun_again_is_the_same_turn_and_its_attempts_are_counted(path: Path) -> None:
    async with Store.open(path) as store:
        await store.append_events(events(1, 3))
        first = await store.begin_turn(ROOM, "$1", "hello", [message("$0", "context")])
        await store.append_events(events(4, 5))
        second = await store.begin_turn(ROOM, "$1", "something else", [message("$x", "other")], max_lines=1)
    async with Store.open(path) as store:
        third = await store.begin_turn(ROOM, "$1", "")
        assert [first.attempt, second.attempt, third.attempt] == [1, 2, 3]
        for again in (second, third):
            assert (again.lines, again.text, again.context) == (lines(1, 3), "hello", ["context"])
            assert again.reply is None
        assert len(await store.read_transcript(ROOM)) == 1
        await store.complete_turn(third, "done")
        assert (await store.begin_turn(ROOM, "$2", "next")).lines == lines(4, 5)


async def test_a_complete_turn_begun_again_has_its_reply_and_counts_no_attempt(store: Store) -> None:
    await exchange(store, "$1")
    for _ in range(2):
        again = await store.begin_turn(ROOM, "$1", "question $1")
        assert (again.reply, again.failed, again.attempt) == ("answer $1", False, 1)


async def test_completing_again_changes_nothing(path: Path) -> None:
    async with Store.open(path) as store:
        turn = await store.begin_turn(ROOM, "$1", "hello")
        await store.complete_turn(turn, "first")
        commits = store._database.commits
        await store.complete_turn(turn, "second", failed=True)
        assert store._database.commits == commits
    async with Store.open(path) as store:
        await store.complete_turn(turn, "third")
        assert [(entry.role, entry.text) for entry in await store.read_transcript(ROOM)] == [
            ("user", "hello"),
            ("assistant", "first"),
        ]
    assert look(path, "SELECT turns FROM sessions") == [(1,)]


async def test_a_turn_that_was_never_begun_is_not_completed(store: Store) -> None:
    with pytest.raises(UnknownTurn) as caught:
        await store.complete_turn(Turn(ROOM, "$9", "hello"), "reply")
    assert "$9" in str(caught.value)
    assert await store.read_llm_session(ROOM) is None
    await exchange(store, "$1")
    with pytest.raises(UnknownTurn):
        await store.complete_turn(Turn(ROOM, "$9", "hello"), "reply")
    assert len(await store.read_transcript(ROOM)) == 2


async def test_a_failed_turn_keeps_its_lines_and_its_notice_in_the_transcript(store: Store) -> None:
    await store.append_event(event(1))
    turn = await store.begin_turn(ROOM, "$1", "hello")
    await store.complete_turn(turn, "The model did not answer.", failed=True)
    retried = await store.begin_turn(ROOM, "$2", "hello again")
    assert retried.lines == []
    user, notice, again = await store.read_transcript(ROOM)
    assert user.lines == lines(1, 1)
    assert notice == TranscriptEntry("assistant", "$1", "The model did not answer.", failed=True)
    assert again.key == "$2"
    assert (await store.begin_turn(ROOM, "$1", "")).failed


async def test_text_of_every_kind_comes_back_as_it_was_said(path: Path) -> None:
    said = 'line one\nline two\t"quoted" \\ \x00 👩‍💻 </pipeline_events>'
    async with Store.open(path) as store:
        turn = await store.begin_turn(ROOM, "$1", said, [message("$0", said)])
        await store.complete_turn(turn, said + "\ud800")
    async with Store.open(path) as store:
        user, assistant = await store.read_transcript(ROOM)
        assert (user.text, user.context) == (said, [said])
        assert assistant.text == said + "\ufffd"


async def test_text_that_a_document_cannot_hold_leaves_memory_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store.open(path) as store:
        await store.append_event(event(1))
        with monkeypatch.context() as unguarded, pytest.raises(BaseException, match="surrogates not allowed"):
            unguarded.setattr("crdt.store.well_formed", str)
            await store.begin_turn(ROOM, "$\ud800", "hello")
        assert (await store.begin_turn(ROOM, "$1", "hello")).lines == lines(1, 1)
    async with Store.open(path) as store:
        assert [entry.lines for entry in await store.read_transcript(ROOM)] == [lines(1, 1)]


async def test_a_failed_commit_leaves_marks_and_transcript_as_they_were(path: Path) -> None:
    async with Store.open(path, sled_id="build-1") as store:
        await store.append_events(events(1, 3))
        await exchange(store, "$1")
        await store.append_events(events(4, 6))
        await fill_disk(store)
        with pytest.raises(StoreFull):
            await store.begin_turn(ROOM, "$2", "x" * 100_000)
        assert len(await store.read_transcript(ROOM)) == 2
        view = await store.read_llm_session(ROOM)
        assert view is not None
        assert view.high_water == {"build-1": 3}
        await free_disk(store)
        turn = await store.begin_turn(ROOM, "$2", "x" * 100_000)
        assert (turn.lines, turn.attempt) == (lines(4, 6), 1)
    async with Store.open(path) as store:
        assert [entry.lines for entry in await store.read_transcript(ROOM)] == [lines(1, 3), [], lines(4, 6)]


async def test_an_attempt_that_was_parked_does_not_count(path: Path) -> None:
    async with Store.open(path) as store:
        turn = await store.begin_turn(ROOM, "$1", "hello")
        await store.begin_turn(ROOM, "$1", "hello")
        await store.park_turn(turn)
    async with Store.open(path) as store:
        assert (await store.begin_turn(ROOM, "$1", "hello")).attempt == 2
        for _ in range(3):
            await store.park_turn(turn)
        again = await store.begin_turn(ROOM, "$1", "hello")
        assert again.attempt == 1
        await store.complete_turn(again, "hi")
        await store.park_turn(again)
        assert (await store.begin_turn(ROOM, "$1", "hello")).attempt == 1
