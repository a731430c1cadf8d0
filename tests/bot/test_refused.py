"""What a model's server refuses once does not keep the room from its answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bot.llm import FailureKind, ModelFailed
from bot.prompt import split_user, without_failed_words
from bot.texts import failure_notice
from crdt import PipelineEvent, Store, TranscriptEntry, audit_line
from tests.bot.answering import Room

EVENT = PipelineEvent("7", "qa", "done", "Passed")


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with Store.open(tmp_path / "musher.db") as store:
        yield Room.of(store)


@pytest.mark.parametrize("kind", ["refused", "bad_request"])
async def test_a_question_is_tried_without_the_words_of_turns_that_failed_but_with_their_events(
    room: Room, kind: FailureKind
) -> None:
    await room.store.append_event(EVENT)
    room.model.tell(ModelFailed(kind, "filtered"))
    await room.says("badword")
    await room.answer()
    for question in ("still there?", "and now?"):
        room.model.tell(ModelFailed(kind, "filtered"))
        await room.says(question)
        with capture_logs() as logs:
            await room.answer()
        assert [line["kind"] for line in logs if line["event"] == "failed_turns_left_out"] == [kind]
        last = room.model.asked[-1]
        assert not any("badword" in message.content or "filtered" in message.content for message in last)
        assert split_user(last[1].content)[0] == [audit_line(EVENT)]
        assert last[-1].content.endswith(question)
    assert await room.replies() == [failure_notice(kind), "reply 3", "reply 5"]


@pytest.mark.parametrize("kind", ["refused", "bad_request", "unreachable", "server_error"])
async def test_where_nothing_can_be_left_out_or_would_help_a_failure_is_one_call(room: Room, kind: FailureKind) -> None:
    room.model.tell(ModelFailed("unreachable" if kind == "unreachable" else "server_error", "down"))
    await room.says("first")
    await room.answer()
    assert len(room.model.asked) == 1
    room.model.tell(*[ModelFailed(kind, "no")] * 2)
    await room.says("second")
    await room.answer()
    assert len(room.model.asked) == (3 if kind in ("refused", "bad_request") else 2)
    assert (await room.replies())[-1] == failure_notice(kind)


def test_only_what_failed_is_left_out() -> None:
    answered = [TranscriptEntry("user", "$1", "a", ["x"]), TranscriptEntry("assistant", "$1", "b")]
    failed = [TranscriptEntry("user", "$2", "c", ["y"], ["d"]), TranscriptEntry("assistant", "$2", "e", failed=True)]
    newest = TranscriptEntry("user", "$3", "f", ["z"])
    left = without_failed_words([*answered, *failed, newest])
    assert left == [*answered, TranscriptEntry("user", "$2", "", ["y"]), newest]
