"""The listener on the real store: what was answered stands in the log."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from bot.health import Health
from bot.ingest import IngestServer
from crdt import Store
from tests.bot.ingest.raw_http import TOKEN, post
from tests.bot.ingest.senders import SECRET, deliver, github, source, standard


def event(story_id: str, **more: str) -> dict[str, Any]:
    return {
        "story_id": story_id,
        "from_stage": "2_current",
        "to_stage": "3_qa",
        "pipeline_event": "GatesStarted",
    } | more


async def test_with_the_real_store_a_request_is_in_the_log_when_it_is_answered(tmp_path: Path) -> None:
    async with (
        Store.open(tmp_path / "musher.db", sled_id="build-1") as store,
        IngestServer(store.append_batches, [TOKEN], "127.0.0.1", 0, Health()) as server,
    ):
        first = await post(server.port, [event("1", id="a"), event("2"), event("1", id="a")])
        assert first.json == {"accepted": 2, "duplicates": 1, "ignored": 0, "first_seq": 1, "last_seq": 2}
        again = await post(server.port, event("1", id="a"))
        assert again.json == {"accepted": 0, "duplicates": 1, "ignored": 0, "first_seq": None, "last_seq": None}
        stamped = await post(server.port, event("3", occurred_at="2026-01-31T10:30:00+01:00"))
        assert stamped.json["last_seq"] == 3
        refused = await post(server.port, [event("4"), event("5", pipeline_event="__gap__")])
        assert (refused.status, refused.error["field"]) == (422, "[1].pipeline_event")
        recorded = await store.read_events()
        assert [(one.event_seq, one.story_id, one.occurred_at) for one in recorded] == [
            (1, "1", None),
            (2, "2", None),
            (3, "3", "2026-01-31T10:30:00+01:00"),
        ]


async def test_senders_at_the_same_time_share_one_run_of_seqs(tmp_path: Path) -> None:
    async with (
        Store.open(tmp_path / "musher.db") as store,
        IngestServer(store.append_batches, [TOKEN], "127.0.0.1", 0, Health()) as server,
    ):
        answers = await asyncio.gather(*(post(server.port, [event(str(n)), event(str(n))]) for n in range(40)))
        assert {answer.status for answer in answers} == {202}
        assert sorted(answer.json["first_seq"] for answer in answers) == list(range(1, 80, 2))
        assert [one.event_seq for one in await store.read_events()] == list(range(1, 81))


async def test_a_delivery_is_known_again_after_a_restart_and_for_ninety_days(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps({"action": "opened", "issue": {"number": 5}, "repository": {"full_name": "octo/hello"}}).encode()
    now = time.time_ns() // 1_000_000

    async def duplicates_after(days: int, headers: dict[str, str]) -> int:
        monkeypatch.setattr("crdt.store._now_ms", lambda: now + days * 86_400_000)
        async with (
            Store.open(tmp_path / "musher.db") as store,
            IngestServer(store.append_batches, [], "127.0.0.1", 0, Health(), sources=[source("github")]) as server,
        ):
            await store.housekeep()
            answer = await deliver(server.port, "github", body, headers)
            duplicates: int = answer.json["duplicates"]
            return duplicates

    first = github("issues", body)
    assert await duplicates_after(0, first) == 0
    assert await duplicates_after(0, first) == 1
    assert await duplicates_after(89, first) == 1
    assert await duplicates_after(89, github("issues", body)) == 1  # captured, and sent again under another id
    assert await duplicates_after(91, first) == 0


@pytest.mark.parametrize("kind", ["bearer", "standard"])
async def test_a_webhook_that_repeats_a_named_event_in_another_body_stores_it_once(tmp_path: Path, kind: str) -> None:
    def sign(body: bytes) -> dict[str, str]:
        return standard(body) if kind == "standard" else {"Authorization": f"Bearer {SECRET}"}

    one, two, three = (event(name, id=name) for name in "123")
    unnamed = event("4")
    async with (
        Store.open(tmp_path / "musher.db") as store,
        IngestServer(store.append_batches, [TOKEN], "127.0.0.1", 0, Health(), sources=[source(kind)]) as server,
    ):
        for content, accepted in (
            ([one, two, two], 2),
            ([unnamed, two, unnamed, three, unnamed], 4),
            ([one], 0),
            ([unnamed], 1),  # without a name only the same delivery is known again
        ):
            body = json.dumps(content).encode()
            headers = sign(body)
            answer = await deliver(server.port, kind, body, headers)
            assert (answer.json["accepted"], answer.json["duplicates"]) == (accepted, len(content) - accepted)
            assert (await deliver(server.port, kind, body, headers)).json["duplicates"] == len(content)
        assert [each.story_id for each in await store.read_events()] == ["1", "2", "4", "4", "3", "4", "4"]
        assert (await post(server.port, one)).json["accepted"] == 1  # each source has its own names
