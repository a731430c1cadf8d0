"""The running service as those see it who watch it: its private listener, its readiness, its log."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bot import texts
from bot.app import Started, run_service
from bot.config import Config
from bot.errors import ListenFailed
from crdt import RESTORED_AT_MS, Delivery, Store
from tests.bot.edge import eventually, until
from tests.bot.matrix.fake import FakeHomeserver, message, synced

BAD, GOOD = "!bad:fake", "!good:fake"


class Rooms(FakeHomeserver):
    """Notes what is sent to its rooms, and gives out syncs, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, str]] = []
        self.syncs: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._polls = 0
        self.routes["/sync"] = self._sync

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if "/send/" in request.path:
            self.sent.append((request.path.split("/")[5], (await request.json())["body"]))
            return web.json_response({"event_id": f"$sent-{len(self.sent)}"})
        return await super()._answer(request)

    async def _sync(self, _request: web.Request) -> dict[str, Any]:
        self._polls += 1
        try:
            return await self.syncs.get()
        finally:
            self._polls -= 1

    async def end_polls(self) -> None:
        """Answer the long polls that nobody waits for any more."""
        for _ in range(self._polls):
            self.syncs.put_nowait({"next_batch": "end"})
        await until(lambda: not self._polls)

    def opens(self, *rooms: str) -> None:
        """Tell of the rooms that the bot is in, as the first sync of a start does."""
        self.syncs.put_nowait({"next_batch": "s0", "rooms": {"join": {room: {} for room in rooms}}})

    def say(self, room: str, number: int) -> None:
        event = message(number, origin_server_ts=time.time_ns() // 1_000_000)
        self.syncs.put_nowait(synced(event, room=room, next_batch=f"s{number}"))

    def bodies(self, room: str) -> list[str]:
        return [body for there, body in self.sent if there == room]


@pytest.fixture
async def rooms() -> AsyncIterator[Rooms]:
    async with Rooms() as server:
        yield server
        await server.end_polls()


@pytest.fixture
def config(rooms: Rooms, tmp_path: Path) -> Config:
    known = rooms.credentials
    return Config.model_validate(
        {
            "matrix": {
                "homeserver": rooms.url,
                "user_id": known.user_id,
                "access_token": known.access_token,
                "device_id": known.device_id,
                "allowed_users": ["@*:*"],
            },
            "store": {"path": tmp_path / "musher.db"},
            "llm": {"provider": "digest"},
            "ingest": {"port": 0},
            "admin": {"port": 0},
        }
    )


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Started]:
    stop, started = asyncio.Event(), asyncio.get_running_loop().create_future()
    service = asyncio.create_task(run_service(config, stop=stop, on_started=started.set_result))
    await asyncio.wait({service, started}, return_when=asyncio.FIRST_COMPLETED)
    if service.done():
        await service
    try:
        yield started.result()
    finally:
        stop.set()
        async with asyncio.timeout(30):
            await service


async def get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, await response.text()


async def parts(started: Started) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((await get(started.admin_port, "/status"))[1])["parts"]
    return found


def becomes(started: Started, part: str, state: str) -> Callable[[], Any]:
    async def is_so() -> bool:
        found: bool = (await parts(started))[part]["state"] == state
        return found

    return is_so


async def test_a_turn_shows_in_the_metrics_and_every_part_in_the_status(rooms: Rooms, config: Config) -> None:
    rooms.opens(GOOD)
    async with running(config) as started:
        rooms.say(GOOD, 1)
        await until(lambda: len(rooms.bodies(GOOD)) == 1)
        await eventually(becomes(started, "store", "ok"))
        await eventually(lambda: _metric(started, 'musher_deliveries_total{outcome="sent"} 1.0'))
        _, text = await get(started.admin_port, "/metrics")
        assert 'musher_turns_total{outcome="answered"} 1.0' in text
        assert "musher_model_seconds_count 1.0" in text
        assert "musher_ready 1.0" in text
        assert GOOD not in text
        found = await parts(started)
        assert {name: part["state"] for name, part in found.items()} == dict.fromkeys(
            ("sync", "model", "sessions", "outbox", "store"), "ok"
        )
        assert (await get(started.ingest_port, "/readyz"))[0] == 200


async def _metric(started: Started, line: str) -> bool:
    return line in (await get(started.admin_port, "/metrics"))[1]


async def test_a_damaged_room_is_told_of_once_and_the_others_go_on(rooms: Rooms, config: Config) -> None:
    rooms.opens(BAD, GOOD)
    async with running(config) as started:
        rooms.say(BAD, 1)
        await until(lambda: len(rooms.bodies(BAD)) == 1)
        await eventually(lambda: _metric(started, 'musher_deliveries_total{outcome="sent"} 1.0'))
    await rooms.end_polls()
    _damage(config.store.path, BAD)
    rooms.opens(BAD, GOOD)
    rooms.opens()  # a start with a token asks for its open invitations besides
    with capture_logs() as logs:
        async with running(config) as started:
            for number in (2, 3, 4):
                rooms.say(BAD, number)
            await until(lambda: len(rooms.bodies(BAD)) == 2)
            rooms.say(GOOD, 5)
            await until(lambda: len(rooms.bodies(GOOD)) == 1)
            assert rooms.bodies(BAD)[1] == texts.DAMAGED
            assert (await get(started.ingest_port, "/readyz"))[0] == 503
            assert "restore a backup" in (await parts(started))["sessions"]["last_error"]
    told = [line["event"] for line in logs if line["log_level"] in ("warning", "error")]
    assert told.count("room_damaged") == 1
    assert "room_work_failed" not in told
    async with Store.open(config.store.path) as store:
        assert [each.key for each in await store.waiting(BAD)] == ["$message-2", "$message-3", "$message-4"]


def _damage(path: Path, room: str) -> None:
    """Flip a bit in what is stored of the room's conversation, as a failing disk would."""
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute(
            "SELECT doc_id, seq, data FROM ops NATURAL JOIN (SELECT doc_id, name FROM documents) WHERE name LIKE ?",
            (f"session/{room}/%",),
        ).fetchall()
        assert rows
        for doc_id, seq, data in rows:
            flipped = bytes([data[0] ^ 1]) + data[1:]
            connection.execute("UPDATE ops SET data = ? WHERE doc_id = ? AND seq = ?", (flipped, doc_id, seq))
        connection.commit()
    finally:
        connection.close()


async def test_an_outbox_is_measured_with_what_the_last_stop_left(rooms: Rooms, config: Config) -> None:
    async with Store.open(config.store.path) as store:
        await store.settle([], "answered", [Delivery("d1", "!unknown:fake", '{"body":"hi"}')])
    rooms.opens()
    async with running(config) as started:
        await eventually(lambda: _metric(started, "musher_outbox_deliveries 0.0"))
        assert (await parts(started))["outbox"]["state"] in ("starting", "ok")


async def test_a_private_port_that_is_taken_ends_the_start_with_its_key(rooms: Rooms, config: Config) -> None:
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    async with server:
        taken = server.sockets[0].getsockname()[1]
        admin = config.admin.model_copy(update={"port": taken})
        with pytest.raises(ListenFailed, match=r"admin\.port"):
            await run_service(config.model_copy(update={"admin": admin}), stop=asyncio.Event())


async def test_a_clock_that_was_ahead_when_a_backup_was_restored_silences_nobody(rooms: Rooms, config: Config) -> None:
    async with Store.open(config.store.path) as store:
        tomorrow_ms = time.time_ns() // 1_000_000 + 86_400_000
        await store.write_settings({RESTORED_AT_MS: str(tomorrow_ms)})
    rooms.opens(GOOD)
    async with running(config):
        rooms.say(GOOD, 1)
        await until(lambda: rooms.bodies(GOOD))
