from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bot import texts, turn, typing_notice
from bot.llm import ModelFailed
from bot.matrix import DELIVERY_ID_FIELD
from bot.policy import Details
from bot.prompt import split_user
from bot.turn import MAX_ATTEMPTS, RoomSettings
from crdt import PipelineEvent, Store, StoreDamaged, TranscriptEntry
from tests.bot.answering import Room
from tests.bot.edge import ALICE, BOB, ROOM, Disk, nowhere, until


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with Store.open(tmp_path / "musher.db", sled_id="build-1") as store:
        yield Room.of(store)


def event(number: int) -> PipelineEvent:
    return PipelineEvent(str(number), "2_current", "3_qa", "GatesStarted")


def dies_at(point: str) -> Callable[[str], Any]:
    """What a pause point does when the process dies there: nothing after it happens."""

    async def reached(name: str) -> None:
        if name == point:
            raise asyncio.CancelledError

    return reached


async def test_a_message_is_answered_once_with_the_events_since_the_last_turn(room: Room) -> None:
    await room.store.append_events([event(1), event(2)])
    await room.says("what happened?")
    room.model.tell("Two gates started.")
    await room.answer()

    lines, said = split_user(room.model.asked[0][-1].content)
    assert [line.partition(" from")[0] for line in lines] == [
        'pipeline_event story_id="1"',
        'pipeline_event story_id="2"',
    ]
    assert said == f"<{ALICE}>: what happened?"
    assert "Be brief." in room.model.asked[0][0].content
    (content,) = await room.contents()
    assert content["body"] == "Two gates started."
    assert content["msgtype"] == "m.text"
    assert content["m.mentions"] == {"user_ids": [ALICE]}
    assert content["m.relates_to"] == {"m.in_reply_to": {"event_id": "$1"}}
    assert room.announced == [ROOM]
    assert len(room.queued) == 1
    assert await room.store.waiting(ROOM) == []


async def test_the_messages_of_a_turn_are_a_prefix_of_the_next(room: Room) -> None:
    for number in range(3):
        await room.store.append_event(event(number))
        await room.says(f"question {number}")
        await room.answer()
    first, second, third = room.model.asked
    assert second[: len(first)] == first
    assert third[: len(second)] == second
    assert len(third) == 6


async def test_a_burst_gets_one_reply_to_its_newest_message(room: Room) -> None:
    await room.says("one", "two", "three")
    await room.answer()
    assert len(room.model.asked) == 1
    assert room.model.asked[0][-1].content == f"<{ALICE}>: one\n<{ALICE}>: two\n<{ALICE}>: three"
    (content,) = await room.contents()
    assert content["m.relates_to"]["m.in_reply_to"]["event_id"] == "$3"


async def test_a_message_that_comes_while_the_model_works_is_answered_next(room: Room) -> None:
    gate = asyncio.Event()
    room.model.tell(gate)
    await room.says("one")
    answering = asyncio.create_task(room.answer())
    await until(lambda: room.model.asked)
    await room.says("two")
    gate.set()
    await answering
    assert await room.replies() == ["reply 1", "reply 2"]


async def test_what_others_said_before_is_context_of_the_turn(room: Room) -> None:
    await room.says("by the way", sender=BOB, context=True)
    await room.answer()
    assert room.model.asked == []
    await room.says("and?")
    await room.answer()
    assert room.model.asked[0][-1].content == f"<{BOB}>: by the way\n<{ALICE}>: and?"
    assert await room.store.waiting(ROOM) == []


async def test_a_reply_stands_in_the_thread_that_asked(room: Room) -> None:
    await room.says("here?", details=Details(thread_root="$root").dump())
    await room.answer()
    (content,) = await room.contents()
    assert content["m.relates_to"]["rel_type"] == "m.thread"
    assert content["m.relates_to"]["event_id"] == "$root"


@pytest.mark.parametrize("point", ["begin", "model"])
async def test_a_turn_that_died_is_taken_up_again_with_the_same_bytes(room: Room, point: str) -> None:
    await room.store.append_event(event(1))
    await room.says("one", "two")
    room.store._on_step = dies_at(point)
    room.change(reached=dies_at(point))
    with pytest.raises(asyncio.CancelledError):
        await room.answer()
    room.store._on_step = nowhere
    room.change(reached=nowhere)
    await room.store.append_event(event(2))
    await room.says("three")
    await room.answer()

    asked = room.model.asked[1:] if point == "model" else room.model.asked
    if point == "model":
        assert room.model.asked[0] == room.model.asked[1]
    assert split_user(asked[0][-1].content)[1] == f"<{ALICE}>: one\n<{ALICE}>: two"
    assert split_user(asked[1][-1].content)[1] == f"<{ALICE}>: three"
    assert [len(split_user(request[-1].content)[0]) for request in asked] == [1, 1]
    assert [entry.role for entry in await room.transcript()] == ["user", "assistant"] * 2
    assert len(await room.deliveries()) == 2


async def test_a_process_that_dies_after_the_commit_asks_nobody_again(room: Room) -> None:
    await room.says("one")
    room.store._on_step = dies_at("complete")
    with pytest.raises(asyncio.CancelledError):
        await room.answer()
    await room.answer()
    assert len(room.model.asked) == 1
    assert len(await room.deliveries()) == 1


async def test_a_message_that_kills_the_service_does_so_three_times_at_most(room: Room) -> None:
    await room.says("deadly")
    for _ in range(MAX_ATTEMPTS):
        await room.store.begin_turn(ROOM, "$1", "<@alice:example.org>: deadly")
    with capture_logs() as logs:
        await room.answer()
    assert not room.model.asked
    assert [(line["event"], line["attempts"]) for line in logs if line["log_level"] == "error"] == [
        ("turn_poisoned", MAX_ATTEMPTS)
    ]
    assert (await room.transcript())[-1] == TranscriptEntry("assistant", "$1", texts.POISONED, failed=True)
    (content,) = await room.contents()
    assert (content["msgtype"], content["body"]) == ("m.notice", texts.POISONED)
    await room.says("harmless")
    await room.answer()
    assert (await room.replies())[-1] == "reply 1"


async def test_a_turn_that_is_broken_off_in_order_is_no_death(room: Room) -> None:
    await room.says("long")
    room.model.tell(*(asyncio.CancelledError() for _ in range(MAX_ATTEMPTS + 1)))
    for _ in range(MAX_ATTEMPTS + 1):
        with pytest.raises(asyncio.CancelledError):
            await room.answer()
    await room.answer()
    assert (await room.replies()) == [f"reply {MAX_ATTEMPTS + 2}"]


async def test_a_model_that_fails_is_told_in_a_notice_that_stands_for_the_reply(room: Room) -> None:
    await room.store.append_event(event(1))
    await room.says("what happened?")
    room.model.tell(ModelFailed("timeout", "took 120 s"))
    await room.answer()
    notice = texts.failure_notice("timeout")
    assert (await room.transcript())[-1] == TranscriptEntry("assistant", "$1", notice, failed=True)
    (content,) = await room.contents()
    assert (content["msgtype"], content["body"]) == ("m.notice", notice)
    await room.says("and now?")
    await room.answer()
    assert len(room.model.asked) == 2
    assert "GatesStarted" in room.model.asked[1][1].content, "the next turn still shows the events"
    assert "GatesStarted" not in room.model.asked[1][-1].content


async def test_a_conversation_too_long_for_the_model_is_tried_with_half(room: Room) -> None:
    for number in range(6):
        await room.says(f"question {number} " + "x" * 2000)
        await room.answer()
    room.model.tell(ModelFailed("context_overflow", "too long"), "shorter, thank you")
    await room.says("once more")
    await room.answer()
    whole, half = room.model.asked[-2:]
    assert sum(len(each.content) for each in half) < 0.7 * sum(len(each.content) for each in whole)
    assert (await room.replies())[-1] == "shorter, thank you"


async def test_half_too_long_as_well_is_a_failure(room: Room) -> None:
    overflow = ModelFailed("context_overflow", "too long")
    room.model.tell(overflow, overflow)
    await room.says("once more")
    await room.answer()
    assert len(room.model.asked) == 2
    assert await room.replies() == [texts.failure_notice("context_overflow")]


async def test_an_error_that_nobody_foresaw_is_logged_with_its_trace_and_the_room_goes_on(room: Room) -> None:
    room.model.tell(RuntimeError("a bug"))
    await room.says("one")
    with capture_logs() as logs:
        await room.answer()
    (line,) = [line for line in logs if line["event"] == "turn_broke"]
    assert isinstance(line["exc_info"], RuntimeError)
    (content,) = await room.contents()
    assert (content["msgtype"], content["body"]) == ("m.notice", texts.UNEXPECTED)
    await room.says("two")
    await room.answer()
    assert await room.replies() == [texts.UNEXPECTED, "reply 2"]


async def test_a_reply_that_can_not_be_sent_becomes_a_notice(room: Room) -> None:
    room.model.tell("\x00")
    await room.says("one")
    with capture_logs():
        await room.answer()
    assert await room.replies() == [texts.UNEXPECTED]


async def test_a_turn_that_is_complete_is_not_asked_again_even_if_its_message_comes_again(room: Room) -> None:
    done = await room.store.begin_turn(ROOM, "$1", "text")
    await room.store.complete_turn(done, "the reply")
    await room.says("text")
    await room.answer()
    assert room.model.asked == []
    assert await room.store.waiting(ROOM) == []
    assert await room.replies() == ["the reply"]


async def test_a_room_gets_the_persona_that_is_configured_for_it_and_keeps_it(room: Room) -> None:
    room.change(rooms={ROOM: RoomSettings("dispatcher")})
    await room.says("hello")
    await room.answer()
    room.change(rooms={})
    await room.says("hello again")
    await room.answer()
    for request in room.model.asked:
        assert "Speak like a dispatcher." in request[0].content


async def test_a_session_that_events_made_first_gets_its_persona_at_the_first_turn(room: Room) -> None:
    await room.store.append_event(event(1))
    await room.store.assemble_and_advance_session(ROOM)
    await room.says("hello")
    await room.answer()
    view = await room.store.read_llm_session(ROOM)
    assert view is not None
    assert (view.persona_name, view.high_water) == ("default", {"build-1": 1})


async def test_an_unknown_persona_speaks_as_the_default_one_and_is_logged(room: Room) -> None:
    await room.store.write_llm_session(ROOM, persona_name="gone", scope="single-sled")
    await room.says("hello")
    with capture_logs() as logs:
        await room.answer()
    assert "Be brief." in room.model.asked[0][0].content
    assert [line["persona"] for line in logs if line["event"] == "persona_unknown"] == ["gone"]


async def test_a_filter_decides_which_events_the_room_is_given(room: Room) -> None:
    room.change(rooms={ROOM: RoomSettings(keep=lambda recorded: recorded.story_id == "2")})
    await room.store.append_events([event(1), event(2), event(3)])
    await room.says("news?")
    await room.answer()
    (line,) = split_user(room.model.asked[0][-1].content)[0]
    assert 'story_id="2"' in line


async def test_a_reply_is_in_doubt_from_its_commit_on(room: Room) -> None:
    before = time.time()
    await room.says("hello")
    await room.answer()
    (reply,) = await room.deliveries()
    assert reply.attempts == 1
    assert reply.first_attempt_at is not None
    assert before <= reply.first_attempt_at <= time.time()


async def test_a_reply_is_expected_before_it_can_be_sent_and_queued_once_it_can(room: Room) -> None:
    told: list[tuple[str, int]] = []

    def commits() -> int:
        return room.store._database.commits

    room.change(
        expect=lambda deliveries: told.append((deliveries[0].session_id, commits())),
        queued=lambda: told.append(("queued", commits())),
    )
    await room.says("hello")
    await room.answer()
    before = told[0][1]
    assert told == [(ROOM, before), ("queued", before + 1)]


async def test_deliveries_have_ids_of_the_message_and_carry_them(room: Room) -> None:
    room.model.tell("word " * 40_000)
    await room.says("tell me everything")
    await room.answer()
    deliveries = await room.deliveries()
    assert len(deliveries) > 1
    ids = [delivery.delivery_id for delivery in deliveries]
    base = ids[0].removesuffix("-0")
    assert ids == [f"{base}-{part}" for part in range(len(ids))]
    assert all(json.loads(each.content)[DELIVERY_ID_FIELD] == each.delivery_id for each in deliveries)
    await room.says("and again")
    await room.answer()
    (other,) = await room.deliveries()
    assert other.delivery_id.rpartition("-")[0] != base


async def test_the_ids_of_a_turns_deliveries_are_the_same_on_every_attempt(room: Room) -> None:
    chosen = await room.store.begin_turn(ROOM, "$1", "text")
    first = turn._delivery(chosen, 0, {"body": "one"})
    second = turn._delivery(replace(chosen, attempt=2), 0, {"body": "two"})
    elsewhere = turn._delivery(replace(chosen, session_id="!other"), 0, {"body": "one"})
    assert first.delivery_id == second.delivery_id != elsewhere.delivery_id
    assert 0 < len(first.delivery_id) < 100


async def test_a_full_disk_does_not_cost_the_answer(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "STORE_RETRY_S", 0.001)
    disk = Disk(room.store)
    refused = 10

    async def fills(point: str) -> None:
        if point == "model":
            disk.full_for = refused

    room.change(reached=fills)
    await room.says("one")
    with capture_logs() as logs:
        await room.answer()
    assert disk.refused == refused
    assert len(room.model.asked) == 1, "each question costs money"
    assert await room.replies() == ["reply 1"]
    assert len(await room.deliveries()) == 1
    assert len([line for line in logs if line["event"] == "reply_not_stored"]) == refused


async def test_a_damaged_inbox_is_an_error_not_a_hot_loop(room: Room) -> None:
    await room.says("one")
    await room.store._database.write(lambda connection: connection.execute("UPDATE inbox SET text = 'forged'"))
    with pytest.raises(StoreDamaged):
        await room.answer()
    assert room.model.asked == []


async def test_typing_is_shown_while_the_model_works(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typing_notice, "SHOW_AFTER_S", 0.0)
    gate = asyncio.Event()
    room.model.tell(gate)
    await room.says("one")
    answering = asyncio.create_task(room.answer())
    await until(lambda: room.typed)
    gate.set()
    await answering
    assert room.typed == [True, False]


async def test_a_cancelled_turn_takes_no_further_turn(room: Room) -> None:
    gate = asyncio.Event()
    room.model.tell(gate)
    await room.says("one")
    answering = asyncio.create_task(room.turns.answer_next(ROOM))
    await until(lambda: room.model.asked)
    await room.says("two")
    answering.cancel()
    await asyncio.wait({answering}, timeout=30)
    assert answering.cancelled()
    assert [(each.key, each.turn_key) for each in await room.store.waiting(ROOM)] == [("$1", "$1"), ("$2", None)]
    assert len(room.model.asked) == 1


async def test_message_text_is_not_logged_at_info(room: Room) -> None:
    await room.says("a secret word")
    room.model.tell("a secret reply")
    with capture_logs() as logs:
        await room.answer()
    assert logs
    assert "secret" not in str([line for line in logs if line["log_level"] != "debug"])
