"""The sample pipeline: believable, endless, and the same every time."""

from __future__ import annotations

from collections import Counter

import pytest

from bot.demo.pipeline import BACKLOG, CURRENT, DONE, MOST_OPEN, MOST_SETBACKS, OPENING, QA, REVIEW, SamplePipeline
from crdt import PipelineEvent, validate_event

LONG = 1_000
ALLOWED = {
    ("", BACKLOG, "StoryCreated"),
    (BACKLOG, CURRENT, "WorkStarted"),
    (CURRENT, QA, "GatesStarted"),
    (QA, REVIEW, "GatesPassed"),
    (QA, CURRENT, "GatesFailed"),
    (REVIEW, DONE, "Merged"),
    (REVIEW, CURRENT, "ChangesRequested"),
}


def played(count: int, seed: int = 0) -> list[PipelineEvent]:
    pipeline = SamplePipeline(seed)
    return [pipeline.advance() for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_every_story_moves_from_where_it_is(seed: int) -> None:
    stages: dict[str, str] = {}
    for number, event in enumerate(played(LONG, seed)):
        validate_event(event)
        assert (event.from_stage, event.to_stage, event.pipeline_event) in ALLOWED
        was = stages.get(event.story_id, "" if number >= len(OPENING) else event.from_stage)
        assert event.from_stage == was
        stages[event.story_id] = event.to_stage
        assert sum(stage != DONE for stage in stages.values()) <= MOST_OPEN


def test_the_same_seed_plays_the_same_events_and_another_one_others() -> None:
    assert played(LONG) == played(LONG)
    assert played(100, seed=1)[: len(OPENING)] == list(OPENING)
    assert played(100, seed=1) != played(100, seed=2)


def test_it_begins_with_a_failed_gate_and_a_rework() -> None:
    assert {"GatesFailed", "ChangesRequested"} <= {event.pipeline_event for event in played(len(OPENING))}


@pytest.mark.parametrize("stopped_after", [0, 3, len(OPENING), 57])
def test_a_resumed_board_goes_on_as_if_it_had_never_stopped(stopped_after: int) -> None:
    whole = played(100)
    pipeline = SamplePipeline()
    for event in whole[:stopped_after]:
        pipeline.resume(event)
    assert [pipeline.advance() for _ in range(100 - stopped_after)] == whole[stopped_after:]


def test_everything_happens_and_no_story_is_stuck() -> None:
    events = played(LONG)
    kinds = Counter(event.pipeline_event for event in events)
    assert kinds["Merged"] > 100
    assert 20 < kinds["GatesFailed"] < kinds["GatesPassed"]
    assert kinds["ChangesRequested"] > 10
    done = {event.story_id for event in events if event.to_stage == DONE}
    old = {event.story_id for event in events[: LONG - 100]}
    assert old <= done
    thrown_back = Counter(e.story_id for e in events if e.pipeline_event in ("GatesFailed", "ChangesRequested"))
    assert max(thrown_back.values()) == MOST_SETBACKS


def test_events_that_somebody_else_posted_do_not_disturb_it() -> None:
    pipeline = SamplePipeline()
    pipeline.resume(PipelineEvent("release-7", "", "shipped", "Released"))
    pipeline.resume(PipelineEvent("42", "nowhere", "5_done", "Closed"))
    events = [pipeline.advance() for _ in range(200)]
    assert "release-7" not in {event.story_id for event in events}
