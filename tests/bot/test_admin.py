from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bot.admin import AdminServer
from bot.errors import ListenFailed
from bot.health import Health
from bot.metrics import Metrics
from crdt import CrdtError, Statistics, Store, StoreDamaged, StoreUnavailable

IDENTITY = {"sled_id": "build-1"}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store.open(tmp_path / "musher.db") as store:
        yield store


async def get(server: AdminServer, path: str) -> tuple[int, str, str]:
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{server.port}{path}") as response:
        assert "Python" not in response.headers["Server"]
        return response.status, response.content_type, await response.text()


async def status(server: AdminServer) -> dict[str, Any]:
    code, content_type, text = await get(server, "/status")
    assert (code, content_type) == (200, "application/json")
    found: dict[str, Any] = json.loads(text)
    return found


async def test_metrics_are_what_prometheus_reads(store: Store) -> None:
    async with AdminServer("127.0.0.1", 0, store, Health("sync"), Metrics(), IDENTITY) as server:
        code, content_type, text = await get(server, "/metrics")
    assert (code, content_type) == (200, "text/plain")
    assert "# TYPE musher_turns_total counter" in text
    assert 'musher_turns_total{outcome="answered"} 0.0' in text
    assert "\nmusher_inbox_messages 0.0" in text


async def test_the_status_tells_of_each_part_since_when_and_its_last_error(store: Store) -> None:
    health = Health("sync")
    health.register("model", required=False)
    async with AdminServer("127.0.0.1", 0, store, health, Metrics(), IDENTITY) as server:
        health.ok("sync")
        health.failing("model", "model 'x' can't be reached")
        found = await status(server)
        assert found["ready"] is True
        assert found["sled_id"] == "build-1"
        model = found["parts"]["model"]
        assert set(model) == {"state", "since", "required", "failures", "last_error", "last_error_at"}
        assert (model["state"], model["last_error"], model["required"]) == (
            "failing",
            "model 'x' can't be reached",
            False,
        )
        assert model["since"] == model["last_error_at"]
        assert found["store"]["outbox"] == {"waiting": 0, "oldest_s": 0.0}
        health.failing("sync", "no route")
        assert (await status(server))["ready"] is False


@pytest.mark.parametrize(
    "error", [StoreUnavailable("musher.db", "failed", "look"), StoreDamaged("musher.db", "failed")]
)
async def test_a_store_that_can_not_be_read_leaves_the_rest_to_be_seen(error: CrdtError) -> None:
    class Broken:
        async def statistics(self) -> Statistics:
            raise error

    async with AdminServer("127.0.0.1", 0, Broken(), Health("sync"), Metrics(), IDENTITY) as server:
        assert (await status(server))["store"] is None
        code, _, text = await get(server, "/metrics")
    assert code == 200
    assert "musher_sync_age_seconds" in text


async def test_there_is_nothing_else(store: Store) -> None:
    async with AdminServer("127.0.0.1", 0, store, Health(), Metrics(), IDENTITY) as server:
        assert (await get(server, "/"))[0] == 404
        assert (await get(server, "/v1/events"))[0] == 404


async def test_an_address_that_is_taken_is_told_with_its_keys(store: Store) -> None:
    async with AdminServer("127.0.0.1", 0, store, Health(), Metrics(), IDENTITY) as first:
        with pytest.raises(ListenFailed, match=rf"can't listen on 127\.0\.0\.1:{first.port} .*admin\.port"):
            async with AdminServer("127.0.0.1", first.port, store, Health(), Metrics(), IDENTITY):
                raise AssertionError("it listens twice")
