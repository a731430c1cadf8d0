from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from bot.health import Health
from bot.ingest import IngestServer
from crdt import Appended, EventBatch, InvalidEvent, StoreClosed, StoreDamaged, StoreFull, StoreUnavailable
from tests.bot.ingest.conftest import RecordingAppend
from tests.bot.ingest.raw_http import TOKEN, connect, get, head, post


def event(story_id: str, **more: str) -> dict[str, Any]:
    return {
        "story_id": story_id,
        "from_stage": "2_current",
        "to_stage": "3_qa",
        "pipeline_event": "GatesStarted",
    } | more


async def test_an_event_is_answered_with_its_seq(server: IngestServer) -> None:
    answer = await post(server.port, event("42"))
    assert answer.status == 202
    assert answer.json == {"accepted": 1, "duplicates": 0, "ignored": 0, "first_seq": 1, "last_seq": 1}


async def test_an_array_is_stored_in_one_call_in_its_order(server: IngestServer, append: RecordingAppend) -> None:
    await post(server.port, event("0"))
    answer = await post(server.port, [event("1"), event("2"), event("3")])
    assert answer.json == {"accepted": 3, "duplicates": 0, "ignored": 0, "first_seq": 2, "last_seq": 4}
    assert [[batch.events[0].story_id for batch in call] for call in append.calls] == [["0"], ["1", "2", "3"]]


async def test_a_request_sent_again_stores_nothing(server: IngestServer) -> None:
    await post(server.port, [event("1", id="a"), event("2", id="b")])
    answer = await post(server.port, [event("1", id="a"), event("2", id="b")])
    assert answer.json == {"accepted": 0, "duplicates": 2, "ignored": 0, "first_seq": None, "last_seq": None}


async def test_an_empty_array_is_accepted_and_never_reaches_the_log(
    server: IngestServer, append: RecordingAppend
) -> None:
    answer = await post(server.port, [])
    assert answer.status == 202
    assert answer.json == {"accepted": 0, "duplicates": 0, "ignored": 0, "first_seq": None, "last_seq": None}
    assert append.calls == []


async def test_one_wrong_event_keeps_the_whole_request_out(server: IngestServer, append: RecordingAppend) -> None:
    answer = await post(server.port, [event("1"), event("2"), event("3"), {"stroy_id": "4"}])
    assert answer.status == 422
    assert answer.error["code"] == "invalid_event"
    assert answer.error["field"] == "[3].stroy_id"
    assert append.calls == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"a": 1, "a": 2}', b"[NaN]", b"\xff", b"[" * 100_000, b'{"a":' * 100_000]
)
async def test_what_is_not_strict_json_is_malformed(server: IngestServer, body: bytes) -> None:
    answer = await post(server.port, body)
    assert (answer.status, answer.error["code"], answer.error["field"]) == (400, "malformed", None)
    assert (await get(server.port, "/healthz")).status == 200


async def test_too_many_events_are_too_large(server: IngestServer) -> None:
    answer = await post(server.port, [event("1")] * 1_001)
    assert (answer.status, answer.error["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Type": None},
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Type": "nonsense"},
        {"Content_Type": "application/json; charset=latin-1"},
        {"Content_Encoding": "gzip"},
        {"Content_Encoding": "br"},
        {"Content_Encoding": "identity, gzip"},
    ],
)
async def test_other_types_charsets_and_encodings_are_unsupported(
    server: IngestServer, headers: dict[str, str | None]
) -> None:
    answer = await post(server.port, event("1"), **headers)
    assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Type": "application/json; charset=UTF-8"},
        {"Content_Type": 'Application/JSON;charset="utf-8"'},
        {"Content_Encoding": "identity"},
    ],
)
async def test_json_may_say_that_it_is_utf_8_and_not_encoded(server: IngestServer, headers: dict[str, str]) -> None:
    assert (await post(server.port, event("1"), **headers)).status == 202


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic s3cret-token", f"Bearer {TOKEN}x", ""])
async def test_without_a_known_token_nothing_is_stored(
    server: IngestServer, append: RecordingAppend, authorization: str | None
) -> None:
    answer = await post(server.port, event("1"), Authorization=authorization)
    assert (answer.status, answer.error["code"]) == (401, "unauthorized")
    assert append.calls == []


async def test_every_configured_token_opens(server: IngestServer) -> None:
    for token in ("another-token", TOKEN):
        assert (await post(server.port, event("1"), Authorization=f"Bearer {token}")).status == 202


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoreFull("/secret/place.db"), "storage_full"),
        (StoreUnavailable("/secret/place.db", "can't be written", "look at the disk"), "storage_unavailable"),
        (StoreClosed("/secret/place.db"), "storage_unavailable"),
        (StoreDamaged("/secret/place.db", "the database disk image is malformed"), "storage_unavailable"),
    ],
)
async def test_a_log_that_cannot_take_events_asks_to_come_back_later(
    server: IngestServer, append: RecordingAppend, error: Exception, code: str
) -> None:
    append.error = error
    answer = await post(server.port, event("1"))
    assert (answer.status, answer.error["code"]) == (503, code)
    assert int(answer.headers["retry-after"]) > 0
    assert b"secret" not in answer.body
    append.error = None
    assert (await post(server.port, event("1"))).status == 202


async def test_a_damaged_log_is_told_of_once_and_without_a_trace(server: IngestServer, append: RecordingAppend) -> None:
    append.error = StoreDamaged("musher.db", "it is malformed")
    with capture_logs() as logs:
        for _ in range(3):
            await post(server.port, event("1"))
    errors = [line for line in logs if line["log_level"] == "error"]
    assert [(line["event"], line["reason"]) for line in errors] == [("event_log_damaged", str(append.error))]


async def test_an_event_that_only_the_log_refuses_is_named(server: IngestServer, append: RecordingAppend) -> None:
    append.error = InvalidEvent("[0].story_id", "is not to its taste")
    answer = await post(server.port, [event("1")])
    assert (answer.status, answer.error["field"]) == (422, "[0].story_id")


async def test_the_unforeseen_is_logged_here_and_told_to_nobody(server: IngestServer, append: RecordingAppend) -> None:
    append.error = RuntimeError("the inner workings")
    with capture_logs() as logs:
        answer = await post(server.port, event("1"))
    assert (answer.status, answer.error["code"]) == (500, "internal")
    assert b"inner workings" not in answer.body
    assert [(line["event"], line["log_level"], line["exc_info"]) for line in logs] == [
        ("request_failed", "error", True)
    ]


async def test_the_log_has_counts_and_codes_but_no_bodies_and_no_tokens(server: IngestServer) -> None:
    with capture_logs() as logs:
        await post(server.port, [event("private", id="x"), event("private", id="x")])
        await post(server.port, event("private"), Authorization="Bearer private")
        await post(server.port, {"private": "private"})
    assert logs == [
        {
            "event": "events_accepted",
            "log_level": "info",
            "accepted": 1,
            "duplicates": 1,
            "ignored": 0,
            "first_seq": 1,
            "last_seq": 1,
        },
        {"event": "events_refused", "log_level": "info", "code": "unauthorized", "status": 401},
        {"event": "events_refused", "log_level": "info", "code": "invalid_event", "status": 422},
    ]


class HeldAppend:
    """An append that stays in the commit until it is let go."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.let_go = asyncio.Event()
        self.done = asyncio.Event()

    async def __call__(self, batches: Sequence[EventBatch]) -> Sequence[Appended]:
        self.begun.set()
        await self.let_go.wait()
        self.done.set()
        return [Appended(seqs=(1,)) for _ in batches]


async def test_a_client_that_leaves_during_the_commit_does_not_undo_it(caplog: pytest.LogCaptureFixture) -> None:
    append = HeldAppend()
    async with IngestServer(append, [TOKEN], "127.0.0.1", 0, Health()) as server:
        with capture_logs() as logs:
            async with connect(server.port) as leaver:
                await leaver.send(
                    head(Content_Length="80")
                    + b'{"story_id": "1", "from_stage": "a", "to_stage": "b", "pipeline_event": "Moved"}'
                )
                await append.begun.wait()
                leaver.writer.transport.abort()
            assert (await get(server.port, "/healthz")).status == 200
            append.let_go.set()
            await asyncio.wait_for(append.done.wait(), 30)
            assert (await post(server.port, event("1"))).status == 202
    assert [line["event"] for line in logs] == ["events_accepted", "events_accepted"]
    assert caplog.records == []
