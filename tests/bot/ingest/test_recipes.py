"""The jobs that docs/senders.md shows, run as they are printed against a listener on the real store."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from bot.health import Health
from bot.ingest import IngestServer
from crdt import Store
from tests.bot.ingest.raw_http import TOKEN

pytestmark = pytest.mark.skipif(
    not (shutil.which("jq") and shutil.which("curl")), reason="the recipes need jq and curl, as runners have them"
)
SENDERS = Path(__file__).parents[3] / "docs" / "senders.md"
# Git allows quotes in the names of branches.
GITHUB = {"GITHUB_REPOSITORY": "octo/hello", "GITHUB_REF_NAME": 'fix/"door"', "GITHUB_WORKFLOW": "CI"}
GITLAB = {"CI_JOB_ID": "77", "CI_PROJECT_PATH": "ship/hull", "CI_COMMIT_REF_NAME": "main"}


def recipes() -> list[Any]:
    found = re.findall(r"```yaml\n(.*?)```", SENDERS.read_text(), re.DOTALL)
    return [yaml.safe_load(dedent(block)) for block in found]


async def run(script: str, variables: Mapping[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        "sh", "-e", "-c", script, env=os.environ | variables, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said
    return said.decode()


async def test_the_jobs_of_github_actions_and_gitlab_ci_tell_their_outcome(tmp_path: Path) -> None:
    (github,), gitlab = recipes()
    (gitlab_script,) = gitlab[".tell-musher"]["script"]
    async with (
        Store.open(tmp_path / "musher.db") as store,
        IngestServer(store.append_batches, [TOKEN], "127.0.0.1", 0, Health()) as server,
    ):
        service = {"MUSHER_URL": f"http://127.0.0.1:{server.port}", "MUSHER_TOKEN": TOKEN}
        assert set(github["env"]) == {*service, "OUTCOME"}
        await run(github["run"], service | GITHUB | {"OUTCOME": "failure"})
        for job in ("tell-musher-passed", "tell-musher-failed"):
            await run(gitlab_script, service | GITLAB | gitlab[job]["variables"] | {"CI_JOB_ID": job})
        again = await run(gitlab_script, service | GITLAB | {"OUTCOME": "passed", "CI_JOB_ID": "tell-musher-passed"})
        assert '"duplicates": 1' in again
        told = [(e.story_id, e.to_stage, e.pipeline_event) for e in await store.read_events()]
    assert told == [
        ('octo/hello@fix/"door"', "failure", "CI failure"),
        ("ship/hull@main", "passed", "pipeline passed"),
        ("ship/hull@main", "failed", "pipeline failed"),
    ]
