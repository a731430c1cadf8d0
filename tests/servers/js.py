"""A person whose client is matrix-js-sdk with its Rust crypto, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

from tests.fetch.matrix_js_sdk import CACHED, PERSON

Json = dict[str, Any]


class JsPerson:
    """Steers the process by lines of JSON; what it hears stands in `heard`, with the shield that it would show."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._news = asyncio.Condition()
        self._answers: asyncio.Queue[Json] = asyncio.Queue()
        self.heard: list[Json] = []
        self.user_id = ""
        self.device_id = ""

    @classmethod
    @asynccontextmanager
    async def logged_in(cls, url: str, user: str, password: str, *, only_signed: bool) -> AsyncIterator[Self]:
        """Log in on a new device. `only_signed`: it gives keys to, and believes, cross-signed devices only."""
        script = shutil.copy(PERSON / "person.mjs", CACHED)
        process = await asyncio.create_subprocess_exec(
            "node",
            script,
            cwd=CACHED,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1024 * 1024,
        )
        person = cls(process)
        reading = asyncio.create_task(person._read())
        try:
            login = await person.do("login", url=url, user=user, password=password, only_signed=only_signed)
            person.user_id, person.device_id = login["user_id"], login["device_id"]
            yield person
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await reading

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            told = json.loads(line)
            if "heard" not in told:
                self._answers.put_nowait(told)
                continue
            async with self._news:
                self.heard.append(told)
                self._news.notify_all()

    async def do(self, command: str, timeout: float = 30.0, **options: Any) -> Json:
        """Run one command of `person.mjs` and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **options}).encode() + b"\n")
        async with asyncio.timeout(timeout):
            answer = await self._answers.get()
        assert "failure" not in answer, answer["failure"]
        result: Json = answer["answer"]
        return result

    async def until(self, happened: Callable[[list[Json]], Any], timeout: float = 30.0) -> Any:
        """Wait until `happened(heard)` is something true, and return that."""
        async with asyncio.timeout(timeout), self._news:
            while not (found := happened(self.heard)):
                await self._news.wait()
            return found

    async def until_member(self, room: str, user_id: str, timeout: float = 30.0) -> None:
        """Wait until that user has joined."""
        async with asyncio.timeout(timeout):
            while user_id not in (await self.do("members", room=room))["joined"]:  # noqa: ASYNC110 - only asking tells
                await asyncio.sleep(0.05)
