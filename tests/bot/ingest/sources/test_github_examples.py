"""Every payload that GitHub's community has collected, through a github source on the real store."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bot.health import Health
from bot.ingest import IngestServer
from crdt import Store
from tests.bot.ingest.senders import deliver, github, source
from tests.fetch.github_examples import CACHED

pytestmark = pytest.mark.skipif(
    not CACHED.exists(), reason="no examples: fetch them with 'python -m tests.fetch.github_examples' (needs npm)"
)

PULL, ISSUE = "Codertocat/Hello-World#2", "Codertocat/Hello-World#1"
TABLE = {
    "workflow_run": {
        ("Codertocat/Hello-World@main", "in_progress", "completed"): 1,
        ("octo-org/octo-repo@master", "in_progress", "success"): 2,
        ("octo-org/octo-repo@master", "", "queued"): 2,
    },
    "pull_request": {
        (PULL, "", "open"): 4,
        (PULL, "closed", "open"): 2,
        (PULL, "draft", "open"): 3,
        (PULL, "open", "draft"): 3,
        (PULL, "open", "open"): 1,
        (PULL, "open", "review"): 1,
        (PULL, "open", "closed"): 2,
        (PULL, "", "bug"): 2,
        (PULL, "bug", ""): 2,
    },
    "issues": {
        (ISSUE, "", "open"): 4,
        (ISSUE, "closed", "open"): 1,
        (ISSUE, "", "deleted"): 1,
        (ISSUE, "", "bug"): 2,
        (ISSUE, "bug", ""): 2,
        ("octo-org/octo-repo#1", "", "transferred"): 1,
    },
    "check_run": {
        (PULL, "", "queued"): 3,
        (PULL, "in_progress", "failure"): 1,
        (PULL, "in_progress", "success"): 2,
        ("electron/electron#26764", "in_progress", "in_progress"): 1,
        ("github/hello-world@master", "neutral", "queued"): 2,
    },
    "deployment_status": {
        ("Codertocat/Hello-World@master", "", "production"): 3,
        ("Codertocat/Hello-World@master", "", "github-pages"): 1,
    },
}


async def test_each_of_them_is_an_event_or_ignored_for_a_reason(tmp_path: Path) -> None:
    groups: list[dict[str, Any]] = json.loads(CACHED.read_bytes())
    told: dict[str, Counter[tuple[str, str, str]]] = {}
    ignored = sent = 0
    async with (
        Store.open(tmp_path / "musher.db") as store,
        IngestServer(
            store.append_batches,
            [],
            "127.0.0.1",
            0,
            Health(),
            sources=[source("github")],
            append_gap=store.append_event,
        ) as server,
    ):
        for group in groups:
            for number, example in enumerate(group["examples"]):
                # Some examples are the same twice, which is what deduplication is for.
                body = json.dumps(example | {"example": number}).encode()
                with capture_logs() as logs:
                    answer = await deliver(server.port, "github", body, github(group["name"], body))
                assert answer.status == 202
                sent += 1
                ignored += answer.json["ignored"]
                assert answer.json["accepted"] + answer.json["ignored"] == 1
                (line,) = (line for line in logs if line["event"] == "delivery_accepted")
                assert bool(line["reason"]) == bool(answer.json["ignored"])
                for event in await store.read_events(after=(answer.json["first_seq"] or 10**6) - 1):
                    moves = told.setdefault(group["name"], Counter())
                    moves[event.story_id, event.from_stage, event.to_stage] += 1
    assert (sent, ignored) == (329, 250)
    assert {name: told[name] for name in TABLE} == {name: Counter(moves) for name, moves in TABLE.items()}
