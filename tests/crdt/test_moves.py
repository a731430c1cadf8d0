"""A session that moves to another room, and one that forgets what was taken back: each in one commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from crdt import Store, TakenBack, TranscriptEntry, TurnOpen, UnknownTurn, verify_database
from tests.crdt.breakage import commit_in_doubt
from tests.crdt.samples import OTHER_ROOM, ROOM, delivery, event, lines, look, message, on_disk


def strike(entry: TranscriptEntry, gone: Sequence[TakenBack]) -> TranscriptEntry:
    return replace(entry, text="struck " + " ".join(f"{one.key}:{one.place}/{one.count}" for one in gone), context=[])


async def test_a_session_moves_with_marks_entries_and_waiting_messages(path: Path) -> None:
    async with Store.open(path) as store:
        await store.append_event(event(1))
        await store.write_llm_session(ROOM, "dispatcher", "single-sled")
        await store.admit([message("$1"), message("$2"), message("$c", context=True)])
        turn = await store.begin_turn(ROOM, "$1", "hello")
        await store.complete_turn(turn, "hi", [delivery("d1")])
        kept, view = await store.read_transcript(ROOM), await store.read_llm_session(ROOM)
        assert await store.move_session(ROOM, OTHER_ROOM)
        assert await store.read_llm_session(ROOM) is None
        assert await store.read_transcript(ROOM) == []
        assert await store.waiting(ROOM) == []
        assert view is not None
        assert await store.read_llm_session(OTHER_ROOM) == replace(view, session_id=OTHER_ROOM)
    async with Store.open(path) as store:
        assert await store.read_transcript(OTHER_ROOM) == kept
        assert [one.key for one in await store.waiting(OTHER_ROOM)] == ["$2", "$c"]
        await store.append_event(event(2))
        assert (await store.begin_turn(OTHER_ROOM, "$2", "hello")).lines == lines(2, 2)
        assert [one.delivery_id for one in await store.due_deliveries()] == ["d1"]
    assert verify_database(path).problems == ()
    assert look(path, "SELECT name FROM documents WHERE name LIKE 'session/%'") == [(f"session/{OTHER_ROOM}/1",)]


async def test_a_session_moves_that_was_not_used_since_the_store_was_opened(path: Path) -> None:
    async with Store.open(path) as store:
        await store.write_llm_session(ROOM, "dispatcher", "single-sled")
    async with Store.open(path) as store:
        assert await store.move_session(ROOM, OTHER_ROOM)
        assert await store.read_llm_session(ROOM) is None


async def test_an_open_turn_goes_along_and_is_taken_up_in_the_new_room(path: Path) -> None:
    async with Store.open(path) as store:
        await store.admit([message("$1")])
        (waiting,) = await store.waiting(ROOM)
        turn = await store.begin_turn(ROOM, "$1", "hello", said=[waiting])
        assert await store.move_session(ROOM, OTHER_ROOM)
        with pytest.raises(UnknownTurn):
            await store.complete_turn(turn, "too late", [delivery("d1")])
        assert await store.due_deliveries() == []
        again = await store.begin_turn(OTHER_ROOM, "$1", "hello")
        assert (again.text, again.attempt) == ("hello", 1), "a move is no death"
        await store.complete_turn(again, "hi")
        assert await store.waiting_sessions() == []
        assert [entry.text for entry in await store.read_transcript(OTHER_ROOM)] == ["hello", "hi"]
    assert verify_database(path).problems == ()


async def test_a_move_that_failed_and_yet_is_on_the_disk_has_been_made(path: Path) -> None:
    async with Store.open(path) as store:
        await store.write_llm_session(ROOM, "dispatcher", "single-sled")
        with commit_in_doubt(store):
            await store.move_session(ROOM, OTHER_ROOM)
        assert await store.read_llm_session(ROOM) is None
        for room in (ROOM, OTHER_ROOM):
            turn = await store.begin_turn(room, f"$in {room}", "hello")
            await store.complete_turn(turn, "hi")
        view = await store.read_llm_session(OTHER_ROOM)
        assert view is not None
        assert view.persona_name == "dispatcher"
    assert verify_database(path).problems == ()


async def test_nothing_moves_over_a_session_or_from_none(store: Store) -> None:
    assert not await store.move_session(ROOM, OTHER_ROOM)
    for room in (ROOM, OTHER_ROOM):
        await store.write_llm_session(room, room, "single-sled")
    assert not await store.move_session(ROOM, OTHER_ROOM)
    assert not await store.move_session(ROOM, ROOM)
    view = await store.read_llm_session(OTHER_ROOM)
    assert view is not None
    assert view.persona_name == OTHER_ROOM


async def test_what_was_taken_back_is_struck_out_once_no_turn_is_open(path: Path) -> None:
    async with Store.open(path) as store:
        admitted = [message(f"${n}", f"secret {n}") for n in (1, 2, 3)]
        context = [message("$c", "secret c", context=True), message("$d", "secret d", context=True)]
        await store.admit([*context, *admitted])
        turn = await store.begin_turn(ROOM, "$3", "secret 1, 2 and 3", context, said=admitted)
        await store.admit([], redactions=["$2", "$d"])
        assert await store.sessions_to_redact() == [ROOM]
        with pytest.raises(TurnOpen):
            await store.redact_session(ROOM, strike)
        await store.complete_turn(turn, "hi")
    async with Store.open(path) as store:
        assert await store.redact_session(ROOM, strike) == 2
        assert await store.redact_session(ROOM, strike) == 0
        assert await store.sessions_to_redact() == []
        assert await store.redact_session(OTHER_ROOM, strike) == 0
        user, assistant = await store.read_transcript(ROOM)
        assert user.text == "struck $2:1/3 $d:1/2"
        assert (user.context, assistant.text) == ([], "hi")
    assert b"secret" not in on_disk(path)
    assert verify_database(path).problems == ()


async def test_what_was_taken_back_goes_with_its_session(store: Store) -> None:
    await store.admit([message("$1")])
    await store.complete_turn(await store.begin_turn(ROOM, "$1", "hello"), "hi")
    await store.admit([], redactions=["$1"])
    await store.move_session(ROOM, OTHER_ROOM)
    assert await store.redact_session(OTHER_ROOM, strike) == 1
    await store.admit([], redactions=["$1"])
    assert await store.sessions_to_redact() == [OTHER_ROOM]
