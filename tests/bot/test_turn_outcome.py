"""Each turn is counted once, under what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bot import texts, turn
from bot.llm import ModelFailed, Reply
from bot.matrix.render import HTML_INPUT_LIMIT
from bot.turn import TurnOutcome
from crdt import Store
from tests.bot.answering import Room
from tests.bot.edge import ROOM, Disk, until


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with Store.open(tmp_path / "musher.db") as store:
        yield Room.of(store)


@pytest.fixture
def outcomes(room: Room) -> list[TurnOutcome]:
    found: list[TurnOutcome] = []
    room.change(ended=found.append)
    return found


async def test_a_reply_is_an_answer(room: Room, outcomes: list[TurnOutcome]) -> None:
    await room.says("one")
    await room.answer()
    assert outcomes == ["answered"]


async def test_a_model_that_fails_and_a_fault_of_ours_are_told_apart(room: Room, outcomes: list[TurnOutcome]) -> None:
    room.model.tell(ModelFailed("timeout", "too slow"), RuntimeError("unforeseen"))
    for text in ("one", "two"):
        await room.says(text)
        await room.answer()
    assert outcomes == ["failed", "broken"]


async def test_a_turn_that_is_broken_off_in_order_is_parked_and_counted_again_when_it_ends(
    room: Room, outcomes: list[TurnOutcome]
) -> None:
    room.model.tell(asyncio.Event())
    await room.says("one")
    answering = asyncio.create_task(room.answer())
    await until(lambda: room.model.asked)
    answering.cancel()
    await asyncio.wait({answering})
    await room.answer()
    assert outcomes == ["parked", "answered"]


async def test_a_turn_that_kills_the_service_is_poisoned(room: Room, outcomes: list[TurnOutcome]) -> None:
    class Death(SystemExit):
        """Ends the process where it stands."""

    await room.says("one")
    room.model.tell(*[Death()] * turn.MAX_ATTEMPTS)
    for _ in range(turn.MAX_ATTEMPTS):
        with pytest.raises(Death):
            await room.answer()
    await room.answer()
    assert outcomes == ["poisoned"]


async def test_a_reply_that_can_not_be_stored_is_told_of_once(
    room: Room, outcomes: list[TurnOutcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "STORE_RETRY_S", 0.001)
    disk = Disk(room.store)

    async def fills(point: str) -> None:
        if point == "model":
            disk.full_for = 20

    room.change(reached=fills)
    await room.says("one")
    with capture_logs() as logs:
        await room.answer()
    told = [line["event"] for line in logs if "reply_not_stored" in line["event"] and line["log_level"] != "debug"]
    assert told == ["reply_not_stored", "reply_not_stored_over"]
    assert outcomes == ["answered"]
    assert disk.refused == 20
    assert await room.store.waiting(ROOM) == []


async def test_a_reply_without_end_is_cut_and_says_so(room: Room) -> None:
    room.model.tell("word " * 2_000_000)
    await room.says("one")
    with capture_logs() as logs:
        await room.answer()
    (reply,) = await room.replies()
    assert reply.endswith(texts.CUT)
    assert len(reply) < turn.LONGEST_REPLY + 100
    assert [line["event"] for line in logs].count("reply_cut") == 1


async def test_a_reply_that_the_model_could_not_finish_says_so(room: Room) -> None:
    room.model.tell(Reply("First, the story", unfinished=True))
    await room.says("one")
    with capture_logs() as logs:
        await room.answer()
    (content,) = await room.contents()
    assert content["body"] == f"First, the story\n\n{texts.UNFINISHED}"
    assert [line["event"] for line in logs].count("reply_unfinished") == 1


async def test_a_reply_that_is_cut_keeps_its_markup(room: Room) -> None:
    room.model.tell(("**Many** words. " * 20 + "\n\n") * 1_000)
    await room.says("one")
    await room.answer()
    (reply,) = await room.replies()
    assert turn.LONGEST_REPLY < len(reply) <= HTML_INPUT_LIMIT
    assert all("<strong>Many</strong>" in content["formatted_body"] for content in await room.contents())
