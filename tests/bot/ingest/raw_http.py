"""A client that says on the wire exactly what a test wants said, also what no well-behaved client would say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

TOKEN = "s3cret-token"
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"].startswith("application/json"), self.headers
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        content = self.json
        assert set(content) == {"error"}
        assert set(content["error"]) == {"code", "message", "field"}
        return content["error"]


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def send(self, data: bytes | str) -> None:
        self.writer.write(data.encode() if isinstance(data, str) else data)
        await self.writer.drain()

    async def answer(self) -> Answer:
        async with asyncio.timeout(PATIENCE_SECONDS):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
            body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(status=int(head[0].split()[1]), headers=headers, body=body)

    async def closed(self) -> bytes:
        """What comes until the server closes the connection."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._reader.read()


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


def head(path: str = "/v1/events", method: str = "POST", /, **headers: str | None) -> bytes:
    """A request's head with what an honest sender says, changed or (`None`) bereft of the headers given."""
    said: dict[str, str | None] = {"Host": "musher"}
    if method == "POST":
        said |= {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    said |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in said.items() if value is not None)]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


async def post(port: int, content: object, **headers: str | None) -> Answer:
    """Post `content`: bytes as they are, anything else as JSON."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    async with connect(port) as connection:
        await connection.send(head(**({"Content_Length": str(len(body))} | headers)) + body)
        return await connection.answer()


async def get(port: int, path: str, method: str = "GET") -> Answer:
    async with connect(port) as connection:
        await connection.send(head(path, method))
        return await connection.answer()
