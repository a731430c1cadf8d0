from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from contextlib import AsyncExitStack

import pytest
from structlog.testing import capture_logs

from bot.errors import ListenFailed
from bot.health import Health
from bot.ingest import IngestServer, listener
from bot.ingest import server as server_module
from tests.bot.ingest.conftest import RecordingAppend
from tests.bot.ingest.raw_http import TOKEN, connect, get, head, post

EVENT = {"story_id": "1", "from_stage": "a", "to_stage": "b", "pipeline_event": "Moved"}


async def test_healthz_is_ok_while_the_loop_lives(server: IngestServer, health: Health) -> None:
    health.failing("sync", "away")
    answer = await get(server.port, "/healthz")
    assert (answer.status, answer.json) == (200, {"status": "ok"})


async def test_readyz_follows_the_parts_and_tells_no_detail(server: IngestServer, health: Health) -> None:
    answer = await get(server.port, "/readyz")
    assert (answer.status, answer.json) == (503, {"status": "unavailable"})
    health.ok("sync")
    answer = await get(server.port, "/readyz")
    assert (answer.status, answer.json) == (200, {"status": "ok"})
    health.failing("sync", "away")
    assert (await get(server.port, "/readyz")).status == 503


async def test_head_is_answered_like_get_without_a_body(server: IngestServer) -> None:
    async with connect(server.port) as connection:
        await connection.send(head("/healthz", "HEAD", Connection="close"))
        answer = await connection.closed()
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "path", ["/", "/v1/events/", "/v1", "/v1/events/1", "/metrics", "/v1/hooks/gh", "/%", "//healthz"]
)
async def test_an_unknown_path_is_not_found(server: IngestServer, path: str) -> None:
    answer = await get(server.port, path)
    assert (answer.status, answer.error["code"], answer.error["field"]) == (404, "not_found", None)


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        ("/v1/events", "GET", "POST"),
        ("/v1/events", "PUT", "POST"),
        ("/healthz", "DELETE", "GET, HEAD"),
        ("/readyz", "PATCH", "GET, HEAD"),
    ],
)
async def test_another_method_is_told_which_are_allowed(
    server: IngestServer, path: str, method: str, allowed: str
) -> None:
    answer = await get(server.port, path, method)
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


async def test_a_query_does_not_change_the_path(server: IngestServer) -> None:
    assert (await get(server.port, "/healthz?probe=1")).status == 200


async def test_answers_name_no_versions(server: IngestServer) -> None:
    assert (await get(server.port, "/healthz")).headers["server"] == "musher"


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nBad Header\r\n\r\n",
        b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_in_the_same_shape(server: IngestServer, nonsense: bytes) -> None:
    async with connect(server.port) as connection:
        await connection.send(nonsense)
        answer = await connection.answer()
        assert (answer.status, answer.error["code"]) == (400, "malformed")
        await connection.closed()
    assert (await get(server.port, "/healthz")).status == 200


async def test_a_token_in_a_broken_header_is_neither_answered_nor_logged(
    server: IngestServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with capture_logs() as logs:
        async with connect(server.port) as connection:
            await connection.send(f"POST /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\x01\r\n\r\n")
            answer = await connection.answer()
    assert answer.status == 400
    assert TOKEN not in answer.body.decode() + repr(logs) + caplog.text


async def test_a_connection_serves_one_request_after_another(server: IngestServer, append: RecordingAppend) -> None:
    body = b'{"story_id": "1", "from_stage": "a", "to_stage": "b", "pipeline_event": "Moved"}'
    async with connect(server.port) as connection:
        for _ in range(3):
            await connection.send(head(Content_Length=str(len(body))) + body)
            assert (await connection.answer()).status == 202
            await connection.send(head(Content_Length="2") + b"{}")
            assert (await connection.answer()).status == 422
    assert len(append.calls) == 3


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_an_offer_to_upgrade_is_passed_over(server: IngestServer, protocol: str) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": protocol}
    async with connect(server.port) as connection:
        await connection.send(head("/healthz", "GET", **headers))
        assert (await connection.answer()).status == 200
    if protocol == "h2c":  # some HTTP clients offer it with every request
        assert (await post(server.port, EVENT, **headers)).status == 202


async def test_headers_that_trickle_in_are_cut_off(append: RecordingAppend) -> None:
    async with (
        IngestServer(append, [TOKEN], "127.0.0.1", 0, Health(), idle_seconds=0.1) as server,
        connect(server.port) as idle,
        connect(server.port) as slow,
    ):
        await slow.send(b"POST /v1/events HTTP/1.1\r\nHost: mush")
        assert await slow.closed() == b""
        assert await idle.closed() == b""


async def test_connections_over_the_limit_wait_for_their_turn_and_none_is_lost(
    append: RecordingAppend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 3)
    async with (
        IngestServer(append, [TOKEN], "127.0.0.1", 0, Health()) as server,
        connect(server.port) as first,
        connect(server.port) as second,
    ):
        for connection in (first, second):
            await connection.send(head("/healthz", "GET"))
        waiting = [asyncio.create_task(post(server.port, EVENT)) for _ in range(300)]
        for connection in (first, second):
            # A full house needs the place for those who wait.
            answer = await connection.answer()
            assert (answer.status, answer.headers.get("connection")) == (200, "close")
        assert {answer.status for answer in await asyncio.gather(*waiting)} == {202}
        async with connect(server.port) as later:
            for _ in range(2):
                await later.send(head("/healthz", "GET"))
                answer = await later.answer()
                assert (answer.status, "connection" in answer.headers) == (200, False)
    assert len(append.calls) == 300
    assert caplog.records == []


async def test_an_accept_that_fails_is_not_the_last(append: RecordingAppend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_ACCEPT_AGAIN_SECONDS", 0.001)
    failures = [OSError(24, "Too many open files"), ConnectionAbortedError()] * 2
    accept = asyncio.get_running_loop().sock_accept

    async def fail_at_first(listening: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise failures.pop()
        return await accept(listening)

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_accept", fail_at_first)
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 1)
    async with IngestServer(append, [TOKEN], "127.0.0.1", 0, Health()) as server:
        assert (await get(server.port, "/healthz")).status == 200
    assert failures == []


@pytest.mark.parametrize("sent", [b"", head(Content_Length="80") + b"{", head(Content_Length="2")])
async def test_a_client_that_closes_its_half_too_early_is_let_go(
    append: RecordingAppend, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_LINGER_SECONDS", 0.05)
    async with (
        IngestServer(append, [TOKEN], "127.0.0.1", 0, Health(), body_seconds=0.1) as server,
        connect(server.port) as connection,
    ):
        await connection.send(sent)
        connection.writer.write_eof()
        assert b" 202 " not in await connection.closed()
    assert append.calls == []


async def test_a_client_that_closes_its_half_when_it_has_said_all_reads_the_answer(
    server: IngestServer, append: RecordingAppend
) -> None:
    body = json.dumps(EVENT).encode()
    async with connect(server.port) as connection:
        await connection.send(head(Content_Length=str(len(body))) + body)
        connection.writer.write_eof()
        assert (await connection.answer()).status == 202
        assert await connection.closed() == b""
    assert len(append.calls) == 1


async def test_without_tokens_nobody_may_post_and_the_start_says_so(append: RecordingAppend) -> None:
    with capture_logs() as logs:
        async with IngestServer(append, [], "127.0.0.1", 0, Health()) as server:
            assert (await post(server.port, EVENT)).status == 401
            assert (await get(server.port, "/healthz")).status == 200
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["no_ingest_tokens"]


async def test_a_port_that_is_taken_is_named(append: RecordingAppend) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenFailed, match=rf"can't listen on 127\.0\.0\.1:{port} .*ingest\.port"):
            async with IngestServer(append, [TOKEN], "127.0.0.1", port, Health()):
                raise AssertionError("it listens on a taken port")


@pytest.mark.parametrize("host", ["203.0.113.1", "a..b", "a" * 70])
async def test_a_host_that_does_not_exist_is_named(append: RecordingAppend, host: str) -> None:
    with pytest.raises(ListenFailed, match=rf"can't listen on {re.escape(host)}:0 "):
        async with IngestServer(append, [TOKEN], host, 0, Health()):
            raise AssertionError("it listens on a foreign address")


async def test_a_body_that_ends_early_together_with_its_connection_holds_no_place(append: RecordingAppend) -> None:
    async with (
        IngestServer(append, [TOKEN], "127.0.0.1", 0, Health(), body_seconds=3_600) as server,
        connect(server.port) as connection,
    ):
        connection.writer.write(head(Content_Length="80") + b"{")
        connection.writer.write_eof()
        await asyncio.wait_for(connection.closed(), 30)


async def test_a_stop_does_not_wait_for_a_body_that_never_ends(
    append: RecordingAppend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_STOP_SECONDS", 0.05)
    async with asyncio.timeout(30), AsyncExitStack() as outliving:
        async with IngestServer(append, [TOKEN], "127.0.0.1", 0, Health(), body_seconds=3_600) as server:
            connection = await outliving.enter_async_context(connect(server.port))
            await connection.send(head(Content_Length="80", Expect="100-continue"))
            assert (await connection.answer()).status == 100
            await connection.send(b"{")
        await connection.closed()
    assert append.calls == []
    with pytest.raises(ConnectionRefusedError):
        await get(server.port, "/healthz")
