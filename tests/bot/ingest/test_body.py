"""The body's bounds, each over a real socket: what is refused is refused before it has all been sent."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from bot.health import Health
from bot.ingest import IngestServer, listener
from bot.ingest.body import MAX_BODY_BYTES
from bot.ingest.places import MAX_BODIES_IN_FLIGHT
from tests.bot.ingest.conftest import RecordingAppend
from tests.bot.ingest.raw_http import TOKEN, connect, head, post

BODY = b'{"story_id": "1", "from_stage": "a", "to_stage": "b", "pipeline_event": "Moved"}'
LENGTH = str(len(BODY))


async def test_a_declared_length_over_the_limit_is_refused_before_any_of_it_is_sent(server: IngestServer) -> None:
    async with connect(server.port) as connection:
        await connection.send(head(Content_Length=str(MAX_BODY_BYTES + 1)))
        answer = await connection.answer()
        assert (answer.status, answer.error["code"]) == (413, "too_large")
        assert answer.headers["connection"] == "close"


async def test_a_body_without_a_length_is_refused_once_it_is_over_the_limit(
    server: IngestServer, append: RecordingAppend
) -> None:
    async with connect(server.port) as connection:
        await connection.send(head(Transfer_Encoding="chunked"))
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(MAX_BODY_BYTES // 0x10000 + 1):
            await connection.send(chunk)
        assert (await connection.answer()).status == 413
    assert append.calls == []


async def test_a_body_of_exactly_one_mebibyte_passes(server: IngestServer) -> None:
    assert (await post(server.port, BODY + b" " * (MAX_BODY_BYTES - len(BODY)))).status == 202


async def test_a_chunked_body_passes(server: IngestServer) -> None:
    async with connect(server.port) as connection:
        await connection.send(head(Transfer_Encoding="chunked"))
        for byte in BODY:
            await connection.send(b"1\r\n" + bytes([byte]) + b"\r\n")
        await connection.send(b"0\r\n\r\n")
        assert (await connection.answer()).status == 202


async def test_chunks_that_are_framed_wrongly_are_malformed(server: IngestServer, append: RecordingAppend) -> None:
    async with connect(server.port) as connection:
        await connection.send(head(Transfer_Encoding="chunked") + b"5\r\n[    \r\nnonsense\r\n")
        answer = await connection.answer()
        assert (answer.status, answer.error["code"]) == (400, "malformed")
        await connection.closed()
    assert append.calls == []


async def test_a_body_that_does_not_arrive_in_time_is_given_up(
    append: RecordingAppend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_LINGER_SECONDS", 0.05)
    async with (
        IngestServer(append, [TOKEN], "127.0.0.1", 0, Health(), body_seconds=0.05) as server,
        connect(server.port) as connection,
    ):
        await connection.send(head(Content_Length=LENGTH) + BODY[:10])
        answer = await connection.answer()
        assert (answer.status, answer.error["code"]) == (408, "timeout")
        assert answer.headers["connection"] == "close"
        await connection.closed()
    assert append.calls == []


async def test_a_client_that_expects_100_is_told_to_go_on_once_its_token_is_known(server: IngestServer) -> None:
    async with connect(server.port) as connection:
        await connection.send(head(Content_Length=LENGTH, Expect="100-continue"))
        assert (await connection.answer()).status == 100
        await connection.send(BODY)
        assert (await connection.answer()).status == 202
        await connection.send(head("/healthz", "GET"))
        assert (await connection.answer()).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Length": str(MAX_BODY_BYTES + 1)}, 413),
        ({"Expect": "a miracle"}, 417),
    ],
)
async def test_a_client_that_expects_100_never_gets_it_when_it_is_refused(
    server: IngestServer, headers: dict[str, str], status: int
) -> None:
    async with connect(server.port) as connection:
        await connection.send(head(**({"Content_Length": LENGTH, "Expect": "100-continue"} | headers)))
        answer = await connection.answer()
        assert answer.status == status
        assert answer.error["field"] is None


async def test_an_unknown_path_never_invites_a_body(server: IngestServer) -> None:
    async with connect(server.port) as connection:
        await connection.send(head("/nowhere", Content_Length=LENGTH, Expect="100-continue"))
        assert (await connection.answer()).status == 404


async def test_the_token_is_checked_before_the_body_is_read(server: IngestServer) -> None:
    async with connect(server.port) as connection:
        await connection.send(head(Content_Length=LENGTH, Authorization="Bearer wrong"))
        answer = await connection.answer()
        assert (answer.status, answer.error["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_one_body_too_many_in_flight_is_turned_away_and_the_others_finish(
    server: IngestServer, append: RecordingAppend
) -> None:
    async with AsyncExitStack() as stack:
        senders = [await stack.enter_async_context(connect(server.port)) for _ in range(MAX_BODIES_IN_FLIGHT)]
        for sender in senders:
            await sender.send(head(Content_Length=LENGTH, Expect="100-continue"))
            assert (await sender.answer()).status == 100
        refused = await post(server.port, BODY)
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) > 0
        for sender in senders:
            await sender.send(BODY)
        assert {(await sender.answer()).status for sender in senders} == {202}
    assert (await post(server.port, BODY)).status == 202
    assert len(append.calls) == MAX_BODIES_IN_FLIGHT + 1


async def test_a_client_that_leaves_in_mid_body_stores_nothing_and_frees_its_place(
    server: IngestServer, append: RecordingAppend, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(MAX_BODIES_IN_FLIGHT + 1):
        async with connect(server.port) as connection:
            await connection.send(head(Content_Length=LENGTH, Expect="100-continue"))
            assert (await connection.answer()).status == 100
            await connection.send(BODY[:10])
            connection.writer.transport.abort()
    async with asyncio.timeout(30):
        while (await post(server.port, BODY)).status != 202:
            pass
    assert len(append.calls) == 1
    assert caplog.records == []
