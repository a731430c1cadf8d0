"""Rolls: the next part of a session's document, and text that is forgotten for good."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from crdt import SINGLE_SLED, Store, StoreUnavailable, TurnOpen
from tests.crdt.samples import ROOM, event, events, lines, look, message, on_disk, told


async def exchange(store: Store, number: int) -> None:
    """One whole turn: begun and answered."""
    turn = await store.begin_turn(ROOM, f"${number}", f"question {number}")
    await store.complete_turn(turn, f"answer {number}")


async def test_a_part_of_two_hundred_entries_is_followed_by_one_with_the_newest_half(path: Path) -> None:
    async with Store.open(path, sled_id="build-1") as store:
        await store.write_llm_session(ROOM, persona_name="dispatcher", scope=SINGLE_SLED)
        for number in range(1, 101):
            await store.append_event(event(number))
            await exchange(store, number)
        assert len(await store.read_transcript(ROOM)) == 200
        await store.append_event(event(101))
        turn = await store.begin_turn(ROOM, "$101", "question 101")
        assert turn.lines == lines(101, 101)
        entries = await store.read_transcript(ROOM)
        assert [(entry.role, entry.key) for entry in entries[:2]] == [("user", "$51"), ("assistant", "$51")]
        assert len(entries) == 101
        assert told(line for entry in entries for line in entry.lines) == list(range(51, 102))
    assert look(path, "SELECT name FROM documents WHERE name LIKE 'session/%'") == [(f"session/{ROOM}/2",)]
    async with Store.open(path) as store:
        assert await store.read_transcript(ROOM) == entries
        view = await store.read_llm_session(ROOM)
        assert view is not None
        assert (view.persona_name, view.high_water) == ("dispatcher", {"build-1": 101})
    assert look(path, "SELECT turns FROM sessions") == [(100,)]


async def test_a_session_of_many_assembles_rolls_as_well(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crdt.sessions.COMPACT_AFTER_OPS", 10)
    async with Store.open(path) as store:
        for number in range(1, 41):
            await store.append_event(event(number))
            assert await store.assemble_and_advance_session(ROOM) == lines(number, number)
    ((ops,),) = look(path, "SELECT ops FROM documents WHERE name LIKE 'session/%'")
    assert ops <= 10


@pytest.mark.parametrize(
    ("keep", "kept"), [(0, []), (1, []), (2, ["$4"]), (3, ["$4"]), (4, ["$3", "$4"]), (99, ["$1", "$2", "$3", "$4"])]
)
async def test_a_roll_cuts_at_the_border_of_a_turn(path: Path, keep: int, kept: list[str]) -> None:
    async with Store.open(path, sled_id="build-1") as store:
        await store.append_events(events(1, 3))
        for number in range(1, 5):
            await exchange(store, number)
        before = await store.read_transcript(ROOM)
        await store.roll_session(ROOM, keep)
        after = await store.read_transcript(ROOM)
        assert [entry.key for entry in after if entry.role == "user"] == kept
        assert after == before[len(before) - len(after) :]
        assert await store.assemble_and_advance_session(ROOM) == []
    async with Store.open(path) as store:
        assert await store.read_transcript(ROOM) == after
        await store.append_event(event(4))
        assert (await store.begin_turn(ROOM, "$5", "hello")).lines == lines(4, 4)


async def test_a_roll_keeps_more_entries_than_one_transaction_holds(store: Store) -> None:
    for number in range(1, 91):
        await exchange(store, number)
    before = await store.read_transcript(ROOM)
    await store.roll_session(ROOM, 170)
    assert await store.read_transcript(ROOM) == before[10:]


async def test_no_roll_while_a_turn_is_open(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crdt.sessions.ROLL_AFTER_ENTRIES", 4)
    await exchange(store, 1)
    turn = await store.begin_turn(ROOM, "$2", "hello")
    with pytest.raises(TurnOpen) as caught:
        await store.roll_session(ROOM, 0)
    assert ROOM in str(caught.value)
    await store.begin_turn(ROOM, "$3", "hello")
    await store.begin_turn(ROOM, "$4", "hello")
    assert len(await store.read_transcript(ROOM)) == 5
    assert (await store.begin_turn(ROOM, "$2", "")).text == turn.text


async def test_what_was_gone_before_a_session_began_is_no_gap_to_it_after_a_roll(path: Path) -> None:
    async with Store.open(path, segment_events=5, retention_events=5) as store:
        await store.append_events(events(1, 20))
        await store.housekeep()
        await store.write_llm_session(ROOM, persona_name="late", scope=SINGLE_SLED)
        await store.roll_session(ROOM, 0)
    async with Store.open(path, segment_events=5) as store:
        assert await store.assemble_and_advance_session(ROOM) == lines(16, 20)


async def test_rolling_a_session_that_does_not_exist_does_nothing(store: Store) -> None:
    await store.roll_session(ROOM, 0)
    assert await store.read_llm_session(ROOM) is None


async def test_a_turn_that_a_roll_forgot_is_still_known_to_be_complete(store: Store) -> None:
    await exchange(store, 1)
    await store.roll_session(ROOM, 0)
    again = await store.begin_turn(ROOM, "$1", "question 1")
    assert again.reply == ""
    assert await store.read_transcript(ROOM) == []
    await store.complete_turn(again, "another answer")
    assert await store.read_transcript(ROOM) == []


async def test_a_roll_that_cannot_be_committed_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    async with Store.open(path) as store:
        await exchange(store, 1)
        before = await store.read_transcript(ROOM)
        with monkeypatch.context() as disk:
            disk.setattr("crdt.sessions.insert_ops", broken)
            with pytest.raises(StoreUnavailable):
                await store.roll_session(ROOM, 0)
        assert await store.read_transcript(ROOM) == before
        await exchange(store, 2)
        await store.roll_session(ROOM, 4)
        after = await store.read_transcript(ROOM)
        assert after[:2] == before
        assert len(after) == 4
    async with Store.open(path) as store:
        assert await store.read_transcript(ROOM) == after


@pytest.mark.parametrize("length", [20, 3_000, 60_000])
async def test_forgotten_text_is_gone_from_the_disk(path: Path, length: int) -> None:
    secrets = [f"secret-word-{number:04}-" for number in range(60)]
    async with Store.open(path) as store:
        for number, secret in enumerate(secrets):
            text = secret + "x" * (length * (number % 3 + 1) // 2)
            await store.admit([message(f"${number}", text), message(f"$context{number}", text, context=True)])
            turn = await store.begin_turn(ROOM, f"${number}", text, [message(f"$context{number}", text, context=True)])
            await store.complete_turn(turn, text)
            if number % 20 == 19:
                await store.roll_session(ROOM, 4)
        await store.roll_session(ROOM, 0)
        await exchange(store, 1000)
    left = on_disk(path)
    assert b"question 1000" in left
    assert [secret for secret in secrets if secret.encode() in left] == []
