"""`python -m tests.soak.memory --messages 20000 --rooms 200`: the memory of the service over many messages.

A scripted homeserver, since a real one takes about 28 sends a second: each sync brings one message of every room, the
next one comes when all of them are answered. The model is `digest`, which needs no server.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.bot.matrix.fake import FakeHomeserver
from tests.system.outside import event
from tests.system.service import MusherProcess

BOT = "@musher:localhost"
PATIENCE_S = 600.0


class Chatter:
    """The homeserver's side: what everybody says, and how much of it was answered."""

    def __init__(self, rooms: int, messages: int) -> None:
        self.rooms = [f"!room{number}:localhost" for number in range(rooms)]
        self.messages = messages
        self.said = 0
        self.answered = 0
        self._newest: dict[str, tuple[dict[str, Any]]] = {}
        self._numbers = count()
        self._news = asyncio.Condition()

    async def sync(self, request: web.Request) -> dict[str, Any]:
        """All rooms at first, then a message of each once all are answered; the same again to whoever asks again."""
        since = request.query.get("since")
        if since is None:
            return self._batch(dict.fromkeys(self.rooms, ()))
        async with self._news:
            with suppress(TimeoutError):
                async with asyncio.timeout(int(request.query["timeout"]) / 1000):
                    await self._news.wait_for(lambda: since != self._token or self._may_talk)
            if since == self._token and self._may_talk:
                # What is said is to be new in every way, as in life.
                self.said += len(self.rooms)
                self._newest = {room: (self._message(),) for room in self.rooms}
            return self._batch(self._newest if since != self._token else {})

    @property
    def _token(self) -> str:
        return f"s{self.said}"

    @property
    def _may_talk(self) -> bool:
        return self.answered == self.said < self.messages

    def _batch(self, rooms: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        joined = {room: {"timeline": {"events": list(events)}} for room, events in rooms.items()}
        return {"next_batch": self._token, "rooms": {"join": joined}}

    def _message(self) -> dict[str, Any]:
        number = next(self._numbers)
        return {
            "type": "m.room.message",
            "event_id": f"$message-{number}",
            "sender": "@alice:localhost",
            "origin_server_ts": time.time_ns() // 1_000_000,
            "content": {"msgtype": "m.text", "body": f"question {number}: {'how does the team stand? ' * 8}"},
        }

    async def take(self, request: web.Request) -> dict[str, Any]:
        """A reply of the bot."""
        async with self._news:
            self.answered += 1
            self._news.notify_all()
        return {"event_id": f"$reply-{self.answered}"}

    async def wait_until_answered(self, number: int) -> None:
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(lambda: self.answered >= number)


class BusyHomeserver(FakeHomeserver):
    """Knows one account, and lets rooms talk. It keeps no requests."""

    def __init__(self, chatter: Chatter) -> None:
        super().__init__()
        self._chatter = chatter
        self.routes = {
            "/versions": lambda _: {"versions": ["v1.11"]},
            "/login": lambda _: {"user_id": BOT, "device_id": "SLED", "access_token": "token"},
            "/account/whoami": lambda _: {"user_id": BOT, "device_id": "SLED"},
            "/keys/upload": lambda _: {"one_time_key_counts": {"signed_curve25519": 50}},
            "/keys/query": lambda _: {"device_keys": {BOT: {}}},
            "/keys/device_signing/upload": lambda _: {},
            "/keys/signatures/upload": lambda _: {},
            "/sync": chatter.sync,
        }

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.clear()
        if "/typing/" in request.path:
            return web.json_response({})
        if "/send/" in request.path:
            return web.json_response(await self._chatter.take(request))
        return await super()._answer(request)


def _rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


async def _measure(messages: int, rooms: int, every: int) -> None:
    chatter = Chatter(rooms, messages)
    with tempfile.TemporaryDirectory(prefix="musher-memory-") as folder:
        async with BusyHomeserver(chatter) as homeserver:
            musher = MusherProcess(
                Path(folder), homeserver.url, BOT, "http://127.0.0.1:9", {"llm": {"provider": "digest", "model": None}}
            )
            await musher.start()
            began = time.monotonic()
            for number in range(every, messages + 1, every):
                await musher.post_events(event(number))
                await chatter.wait_until_answered(number)
                musher.logs.clear()
                seconds = time.monotonic() - began
                _say(f"{number:6} messages, {_rss_mb(musher.pid):6.1f} MB, {number / seconds:6.1f} messages/s")
            await musher.stop()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.memory")
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rooms", type=int, default=200)
    parser.add_argument("--every", type=int, default=1_000)
    options = parser.parse_args()
    asyncio.run(_measure(options.messages, options.rooms, options.every))


if __name__ == "__main__":
    main()
