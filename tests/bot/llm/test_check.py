"""The look at the model before the service starts ends, whatever the server answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bot.llm import Provider, build_model, remote
from tests.bot.llm.wire import serving

PROVIDERS = pytest.mark.parametrize("provider", ["openai", "anthropic"])


@asynccontextmanager
async def _model(provider: Any, url: str) -> AsyncIterator[Provider]:
    model = build_model(provider, base_url=url, model="test-model")
    try:
        yield model
    finally:
        await model.aclose()


async def _events_of_check(model: Provider) -> list[str]:
    with capture_logs() as logs:
        await model.check()
    return [entry["event"] for entry in logs]


@PROVIDERS
@pytest.mark.parametrize("body", [b'{"data": "\xff"}', b"[" * 100_000, b'{"data": ' + b"9" * 5_000 + b"}"])
async def test_a_list_that_can_not_be_read_is_only_logged(provider: str, body: bytes) -> None:
    answer = {"body": body, "content_type": "application/json"}
    async with serving(lambda _: web.Response(**answer)) as url, _model(provider, url) as model:  # type: ignore[arg-type]
        assert await _events_of_check(model) == ["model_check_impossible"]


@PROVIDERS
async def test_a_list_that_comes_one_byte_at_a_time_is_not_waited_for(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "CHECK_TIMEOUT_SECONDS", 0.3)

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0)

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with _model(provider, f"http://127.0.0.1:{port}/v1") as model:
            assert await _events_of_check(model) == ["model_unreachable"]
