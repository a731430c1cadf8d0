"""kill -9 at any instant: what was acknowledged is there, and nothing is there twice."""

from __future__ import annotations

import asyncio
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from crdt import Store, TranscriptEntry
from tests.crdt.crashing_writer import ROOMS, SEGMENT_EVENTS
from tests.crdt.samples import look

ROUNDS = 12
FOLD = re.compile(r"\d+ earlier events \(seq (\d+)-(\d+)\) omitted")


@dataclass
class Acknowledged:
    """What the processes said, over all rounds."""

    stories: dict[int, str] = field(default_factory=dict)
    admitted: set[str] = field(default_factory=set)
    begun: dict[str, int] = field(default_factory=dict)
    completed: set[str] = field(default_factory=set)

    def note(self, line: str) -> None:
        """Take in one line; one that the death cut off says nothing."""
        word, *rest = line.split()
        if word == "appended":
            for seq, story in (pair.split("=") for pair in rest):
                assert int(seq) not in self.stories
                self.stories[int(seq)] = story
        elif word == "admitted":
            self.admitted.add(rest[1])
        elif word == "begun":
            assert int(rest[2]) > self.begun.get(rest[1], 0)
            self.begun[rest[1]] = int(rest[2])
        elif word == "completed":
            self.completed.add(rest[1])
        else:
            raise AssertionError(line)


async def run_until_killed(path: Path, round_: int, after_lines: int, acknowledged: Acknowledged) -> None:
    """Run a writer, kill it after so many acknowledgements, and read what it still had to say."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.crdt.crashing_writer", str(path), str(round_), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    said = [await process.stdout.readline() for _ in range(after_lines)]
    process.kill()
    said += (await process.stdout.read()).splitlines(keepends=True)
    assert await process.wait() == -9
    for line in said:
        if line.endswith(b"\n"):
            acknowledged.note(line.decode())


def told_seqs(entries: list[TranscriptEntry], seq_of: dict[str, int]) -> list[int]:
    """The seqs that a transcript tells of, in its order."""
    seqs: list[int] = []
    for line in (line for entry in entries for line in entry.lines):
        folded = FOLD.fullmatch(line)
        if folded:
            seqs.extend(range(int(folded[1]), int(folded[2]) + 1))
        else:
            seqs.append(seq_of[line.split('"')[1]])
    return seqs


async def check(path: Path, acknowledged: Acknowledged) -> None:
    """Everything acknowledged is there, once; transcript, marks, inbox and outbox are in step."""
    async with Store.open(path, segment_events=SEGMENT_EVENTS) as store:
        recorded = await store.read_events(limit=10**6)
        assert [one.event_seq for one in recorded] == list(range(1, len(recorded) + 1))
        story_of = {one.event_seq: one.story_id for one in recorded}
        assert story_of.items() >= acknowledged.stories.items()
        seq_of = {story: seq for seq, story in story_of.items()}
        assert len(seq_of) == len(story_of)
        for room in ROOMS:
            entries = await store.read_transcript(room)
            view = await store.read_llm_session(room)
            mark = view.high_water.get("build-1", 0) if view else 0
            seqs = told_seqs(entries, seq_of)
            assert seqs == list(range(mark - len(seqs) + 1, mark + 1))
            assert len(entries) >= 100 or len(seqs) == mark  # beyond 200 entries a roll forgets the oldest
            assert max(Counter((entry.key, entry.role) for entry in entries).values(), default=1) == 1
            waiting = await store.waiting(room)
            assert len(waiting) <= 1
            for one in waiting:
                assert one.key not in acknowledged.completed
                assert (one.turn_key == one.key) == (bool(entries) and entries[-1].key == one.key)
                assert one.turn_key == one.key or one.key not in acknowledged.begun
            for user, assistant in zip(entries[::2], entries[1::2], strict=False):
                assert (user.role, assistant.role, user.key) == ("user", "assistant", assistant.key)
                assert assistant.text == f"answer {user.key}"
    outcomes = dict(look(path, "SELECT key, outcome FROM inbox"))
    assert outcomes.keys() >= acknowledged.admitted
    assert all(outcomes[key] == "answered" for key in acknowledged.completed)
    answered = {f"d-{key}" for key, outcome in outcomes.items() if outcome == "answered"}
    assert {delivery_id for (delivery_id,) in look(path, "SELECT delivery_id FROM outbox")} == answered


@pytest.mark.parametrize("seed", [1, 2])
async def test_killed_again_and_again_it_keeps_all_that_it_acknowledged(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    acknowledged = Acknowledged()
    for round_ in range(ROUNDS):
        await run_until_killed(path, round_, chance.randint(1, 150), acknowledged)
        await check(path, acknowledged)
    assert acknowledged.stories
    assert acknowledged.completed
    attempts = dict(look(path, "SELECT key, attempts FROM turns"))
    assert all(attempts[key] >= attempt for key, attempt in acknowledged.begun.items())
