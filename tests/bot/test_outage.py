"""What leaves the bot while its homeserver is in trouble, all parts together, and how soon it is back."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from bot.app import run_service
from bot.config import Config
from bot.deliver import Deliveries
from bot.health import Health
from bot.intake import Intake
from bot.invitations import Invitations
from bot.matrix import Invite, MatrixError, SyncBatch, Unreachable
from bot.pace import Pace
from bot.policy import Rules
from bot.typing_notice import only_while_open
from crdt import Delivery, Store
from tests.bot.edge import ALICE, Homeserver, nowhere, until
from tests.bot.matrix.fake import FakeHomeserver, html, synced
from tests.bot.test_pace import VirtualTime

SERVER = "https://example.org"
ROOMS = [f"!{n}:fake" for n in range(20)]
RULES = Rules(allows=lambda user: user == ALICE)


class Faulty(Homeserver):
    """A homeserver of which some kinds of requests fail. It counts each request by its kind."""

    def __init__(self, clock: VirtualTime, *fails: str) -> None:
        super().__init__()
        self.fails = set(fails)
        self.asked: list[tuple[str, float]] = []
        self._clock = clock

    async def _ask(self, kind: str) -> None:
        self.asked.append((kind, self._clock()))
        await self._clock.sleep(0.02)
        if kind in self.fails:
            raise Unreachable(SERVER, "HTTP status 502", 502)

    async def send(self, room_id: str, event_type: str, content: Any, txn_id: str) -> str:
        await self._ask("send")
        return await super().send(room_id, event_type, content, txn_id)

    async def sync(self, since: str | None, timeout_ms: int) -> SyncBatch:
        await self._ask("sync")
        await self._clock.sleep(min(timeout_ms, 500) / 1000)  # a busy server: there is always news
        return SyncBatch(f"s{len(self.asked)}")

    async def typing(self, room_id: str, on: bool, timeout_ms: int) -> None:
        await self._ask("typing")

    async def join(self, room_id: str) -> None:
        await self._ask("join")

    async def leave(self, room_id: str) -> None:
        await self._ask("leave")

    async def is_public(self, room_id: str) -> bool:
        return False


class Bot:
    """Everything that asks the homeserver, at work in virtual time."""

    def __init__(self, store: Store, clock: VirtualTime, homeserver: Faulty) -> None:
        self.clock, self.homeserver, self.store = clock, homeserver, store
        self.pace = Pace(clock, random.Random(5).random)
        self.deliveries = Deliveries(store, homeserver, self.pace, nowhere)
        self.invitations = Invitations(homeserver, self.pace, RULES)
        self._intake = Intake(
            store,
            homeserver,
            self.pace,
            Health("sync"),
            RULES,
            wake=lambda _room: None,
            log_in_again=self._never,
            invited=self.invitations.came,
            left=self.invitations.ended,
        )

    async def _never(self) -> None:
        raise AssertionError("nobody was logged out")

    async def run(self) -> None:
        async with asyncio.TaskGroup() as parts:
            parts.create_task(self.deliveries.run())
            parts.create_task(self.invitations.run())
            parts.create_task(self._intake.run("s0"))
            for room in ROOMS:
                parts.create_task(self._type(room))

    async def _type(self, room: str) -> None:
        typing = only_while_open(self.homeserver.typing, self.pace)
        while True:
            with suppress(MatrixError):
                await typing(room, True, 30_000)
            await self.clock.sleep(25)

    async def queue_all(self, batch: str) -> None:
        deliveries = [Delivery(f"{batch}-{room}", room, json.dumps({"body": batch})) for room in ROOMS]
        await self.store.settle([], "answered", deliveries)
        self.deliveries.wake()

    async def live(self, seconds: float) -> None:
        """Let virtual time pass; the database's own is real."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            await self.clock.pass_by(0.1)
            await self.store.read_cursor()
            await self.store._database._units.until_idle()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    clock = VirtualTime()
    for module in ("bot.pace", "bot.invitations"):
        virtual = SimpleNamespace(sleep=clock.sleep, timeout=clock.timeout, Event=asyncio.Event)
        monkeypatch.setattr(f"{module}.asyncio", virtual)
    return clock


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store.open(tmp_path / "musher.db") as store:
        yield store


@pytest.mark.parametrize(
    "fails",
    [("send", "sync", "typing", "join", "leave"), ("send",), ("send", "typing"), ("sync",)],
    ids=["everything", "sends", "what is written", "syncs"],
)
async def test_a_fault_is_met_with_fewer_than_two_requests_a_second(
    store: Store, clock: VirtualTime, fails: tuple[str, ...]
) -> None:
    homeserver = Faulty(clock, *fails)
    bot = Bot(store, clock, homeserver)
    await bot.queue_all("during")
    for n in range(20):
        bot.invitations.came(Invite(f"!invited{n}", ALICE))
    running = asyncio.create_task(bot.run())
    try:
        seconds = 60
        await bot.live(seconds)
        failed = [kind for kind, _ in homeserver.asked if kind in fails]
        assert len(failed) < 2 * seconds, {kind: failed.count(kind) for kind in fails}
        homeserver.fails.clear()
        began = clock()
        await bot.queue_all("after")
        await bot.live(5)
        assert sorted(room for room in ROOMS if "after" not in homeserver.texts(room)) == []
        assert clock() - began < 5.5
    finally:
        running.cancel()
        await asyncio.wait({running})


# The service itself, on the wire


@pytest.fixture
async def fake() -> AsyncIterator[FakeHomeserver]:
    async with FakeHomeserver() as server:
        yield server


async def test_a_service_spares_a_homeserver_that_fails_and_is_back_within_5_s(
    fake: FakeHomeserver, tmp_path: Path
) -> None:
    is_down, polled, over = True, 0, asyncio.Event()

    async def sync(request: web.Request) -> Any:
        nonlocal polled
        if is_down:
            return html(502)
        polled += 1
        if request.query["timeout"] != "0":
            await over.wait()
        return synced(room=ROOMS[0], next_batch=f"s{polled}")

    known = fake.credentials
    config = Config.model_validate(
        {
            "matrix": {
                "homeserver": fake.url,
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
    fake.routes["/sync"] = sync
    fake.routes["/state/m.room.encryption/"] = lambda _: html(502) if is_down else {"algorithm": ""}
    async with Store.open(tmp_path / "musher.db") as store:
        await store.settle([], "answered", [Delivery(f"d-{room}", room, '{"body":"late"}') for room in ROOMS])
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        service = asyncio.create_task(run_service(config, stop=stop))
        stack.push_async_callback(_ended, stop, service)
        stack.callback(over.set)
        await until(lambda: fake.asked("/sync") and fake.asked("/state/m.room.encryption/"), 10)
        # What has left before the first failure came back can't be held back any more.
        failed = time.monotonic()
        await until(lambda: time.monotonic() - failed > 1, 10)
        began, before = time.monotonic(), len(fake.requests)
        await until(lambda: time.monotonic() - began > 4, 10)
        asked = len(fake.requests) - before
        is_down = False
        up_at = time.monotonic()
        await until(lambda: polled, 10)
        assert time.monotonic() - up_at < 5
    assert asked < 2 * 4, [request.path for request in fake.requests[before:]]


async def _ended(stop: asyncio.Event, service: asyncio.Task[None]) -> None:
    stop.set()
    async with asyncio.timeout(30):
        await service
