"""The sample pipeline: a believable board of stories that keeps moving. Pure.

Each story goes from the backlog through work, gates and review to done; now and then its gates fail or its reviewer
wants changes, and it goes back to work. What happens next depends on the events so far alone: a board that was
resumed from its log goes on like one that never stopped.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from crdt import PipelineEvent, RecordedEvent

BACKLOG: Final = "1_backlog"
CURRENT: Final = "2_current"
QA: Final = "3_qa"
REVIEW: Final = "4_review"
DONE: Final = "5_done"

OPENING: Final = (
    PipelineEvent("39", REVIEW, DONE, "Merged"),
    PipelineEvent("42", CURRENT, QA, "GatesStarted"),
    PipelineEvent("44", "", BACKLOG, "StoryCreated"),
    PipelineEvent("42", QA, CURRENT, "GatesFailed"),
    PipelineEvent("43", BACKLOG, CURRENT, "WorkStarted"),
    PipelineEvent("42", CURRENT, QA, "GatesStarted"),
    PipelineEvent("41", QA, REVIEW, "GatesPassed"),
    PipelineEvent("42", QA, REVIEW, "GatesPassed"),
    PipelineEvent("41", REVIEW, CURRENT, "ChangesRequested"),
    PipelineEvent("43", CURRENT, QA, "GatesStarted"),
)
"""A team in the middle of its week: gates that failed and were mended, and a review that asked for more."""

FEWEST_OPEN: Final = 4
MOST_OPEN: Final = 6
MOST_IN_WORK: Final = 3
"""Stories that are written or tested at the same time."""
MOST_SETBACKS: Final = 2
"""Setbacks of one story; after these it goes through, so that no story is stuck for ever."""


@dataclass(frozen=True, slots=True)
class _Move:
    """A way on from a stage; among several, `weight` says how often it is taken."""

    to_stage: str
    pipeline_event: str
    weight: int = 1
    setback: bool = False


_MOVES: Final = {
    BACKLOG: (_Move(CURRENT, "WorkStarted"),),
    CURRENT: (_Move(QA, "GatesStarted"),),
    QA: (_Move(REVIEW, "GatesPassed", 7), _Move(CURRENT, "GatesFailed", 3, setback=True)),
    REVIEW: (_Move(DONE, "Merged", 4), _Move(CURRENT, "ChangesRequested", 1, setback=True)),
}
SETBACKS: Final = frozenset(move.pipeline_event for moves in _MOVES.values() for move in moves if move.setback)
SUCCESSES: Final = frozenset({"GatesPassed", "Merged"})


@dataclass(slots=True)
class _Story:
    """An open story: where it is, when it came there (a count of events), and how often it was thrown back."""

    stage: str
    moved_at: int
    setbacks: int = 0


class SamplePipeline:
    """The board. `count` is the number of its events so far."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._open: dict[str, _Story] = {}
        self._newest_story = 0
        self.count = 0

    def advance(self) -> PipelineEvent:
        """Let the next thing happen and return it; the first things are those of `OPENING`."""
        event = OPENING[self.count] if self.count < len(OPENING) else self._next()
        self.resume(event)
        return event

    def resume(self, event: PipelineEvent | RecordedEvent) -> None:
        """Take over what has happened."""
        self.count += 1
        name = event.story_id
        if name.isascii() and name.isdigit():
            self._newest_story = max(self._newest_story, int(name))
        if event.to_stage not in _MOVES:  # done, or taken off the board by someone who posts events of their own
            self._open.pop(name, None)
            return
        story = self._open.setdefault(name, _Story(event.to_stage, self.count))
        story.stage, story.moved_at = event.to_stage, self.count
        story.setbacks += event.pipeline_event in SETBACKS

    def _next(self) -> PipelineEvent:
        chance = random.Random(f"{self._seed} {self.count}")
        movable = self._movable()
        if len(self._open) < FEWEST_OPEN or (len(self._open) < MOST_OPEN and chance.random() < 0.15) or not movable:
            return PipelineEvent(str(self._newest_story + 1), "", BACKLOG, "StoryCreated")
        # The longer a story has rested, the sooner it moves.
        rested = [self.count - self._open[name].moved_at for name in movable]
        [name] = chance.choices(movable, rested)
        story = self._open[name]
        moves = [move for move in _MOVES[story.stage] if not (move.setback and story.setbacks >= MOST_SETBACKS)]
        [move] = chance.choices(moves, [move.weight for move in moves])
        return PipelineEvent(name, story.stage, move.to_stage, move.pipeline_event)

    def _movable(self) -> Sequence[str]:
        """The stories that may move now; the one that has just moved rests."""
        in_work = sum(story.stage in (CURRENT, QA) for story in self._open.values())
        return [
            name
            for name, story in self._open.items()
            if story.moved_at != self.count and not (story.stage == BACKLOG and in_work >= MOST_IN_WORK)
        ]
