"""Power off while deliveries arrive: what was acknowledged is in the log, once."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from bot.ingest.listener import MAX_CONNECTIONS
from crdt import Store
from tests.bot.ingest.raw_http import connect, head
from tests.bot.ingest.senders import github

DELIVERIES = 2_000
CONNECTIONS = 16
KILL_AFTER = 700
ROOT = Path(__file__).parents[3]


@asynccontextmanager
async def serving(database: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.bot.ingest.serving",
        str(database),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            port = int(await process.stdout.readline())
        yield process, port
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def delivery(number: int) -> bytes:
    issue = {"number": number, "title": f"Issue {number}"}
    body = json.dumps({"action": "opened", "issue": issue, "repository": {"full_name": "octo/hello"}}).encode()
    headers = github("issues", body, delivery=f"delivery-{number}")
    return head("/v1/hooks/github", **headers, Content_Length=str(len(body)), Authorization=None) + body


async def send_all(port: int, on_ack: Callable[[int], None]) -> None:
    """Send every delivery once over all connections; a connection ends when the server does."""
    numbers: Iterator[int] = iter(range(1, DELIVERIES + 1))

    async def send_some() -> None:
        try:
            async with connect(port) as connection:
                for number in numbers:
                    await connection.send(delivery(number))
                    answer = await connection.answer()
                    assert answer.status == 202
                    on_ack(number)
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the server was killed

    await asyncio.gather(*(send_some() for _ in range(CONNECTIONS)))


async def stories(database: Path) -> Counter[int]:
    async with Store.open(database) as store:
        recorded = await store.read_events(limit=10 * DELIVERIES)
        assert [event.event_seq for event in recorded] == list(range(1, len(recorded) + 1))
        return Counter(int(event.story_id.removeprefix("octo/hello#")) for event in recorded)


async def test_whatever_was_acknowledged_before_a_kill_is_in_the_log_once(tmp_path: Path) -> None:
    database = tmp_path / "musher.db"
    acked: set[int] = set()
    async with serving(database) as (process, port):

        def count(number: int) -> None:
            acked.add(number)
            if len(acked) == KILL_AFTER:
                process.kill()

        await send_all(port, count)
        await process.wait()
    assert KILL_AFTER <= len(acked) < DELIVERIES
    kept = await stories(database)
    assert acked <= set(kept)
    assert set(kept.values()) == {1}
    async with serving(database) as (_, port):
        await send_all(port, acked.add)
    assert await stories(database) == Counter(range(1, DELIVERIES + 1))


async def test_more_deliveries_at_one_moment_than_there_are_connections_are_all_taken(tmp_path: Path) -> None:
    crowd = range(1, 901)  # and the usual limit of 1,024 file descriptors is enough for this side
    async with serving(tmp_path / "musher.db") as (_, port):

        async def send_one(number: int) -> int:
            async with connect(port) as connection:
                await connection.send(delivery(number))
                return (await connection.answer()).status

        answers = await asyncio.gather(*map(send_one, crowd))
    assert set(answers) == {202}
    assert len(crowd) > MAX_CONNECTIONS
    assert await stories(tmp_path / "musher.db") == Counter(crowd)
