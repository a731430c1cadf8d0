"""How many native events a second the listener takes durably, beside what bounds it, in one run.

`python -m benchmarks.ingest [SECONDS]`. Each figure stands beside the same server answering without storing (the bound
of HTTP) and beside bare group commit (the bound of the store). The client is a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from bot.health import Health
from bot.ingest import Append, IngestServer
from bot.ingest.native import read_events
from bot.logs import configure_logging
from crdt import Appended, EventBatch, Store

CONNECTIONS = 16
ARRAY = 100
TOKEN = "benchmark"


def _request(number: int, events: int) -> bytes:
    """A request with fresh ids, so that each event passes deduplication."""
    one = [
        {
            "id": f"{number}-{index}",
            "story_id": str(index),
            "from_stage": "2_current",
            "to_stage": "3_qa",
            "pipeline_event": "GatesStarted",
        }
        for index in range(events)
    ]
    body = json.dumps(one if events > 1 else one[0]).encode()
    head = f"POST /v1/events HTTP/1.1\r\nHost: musher\r\nAuthorization: Bearer {TOKEN}\r\n"
    return (head + f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n").encode() + body


async def _workers(seconds: float, work: Callable[[int], Awaitable[object]]) -> float:
    """Run `work` with rising numbers at `CONNECTIONS` places; give how often it ended in a second."""
    started = time.perf_counter()
    done = 0

    async def go_on(place: int) -> None:
        nonlocal done
        number = place
        while time.perf_counter() - started < seconds:
            await work(number)
            number += CONNECTIONS
            done += 1

    await asyncio.gather(*map(go_on, range(CONNECTIONS)))
    return done / (time.perf_counter() - started)


async def _client(port: int, events: int, seconds: float) -> None:
    streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS)]

    async def post(number: int) -> None:
        reader, writer = streams[number % CONNECTIONS]
        writer.write(_request(number, events))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 202"), head
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)

    print(events * await _workers(seconds, post))


async def _served(append: Append, events: int, seconds: float) -> float:
    async with IngestServer(append, [TOKEN], "127.0.0.1", 0, Health()) as server:
        arguments = ["client", str(server.port), str(events), str(seconds)]
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.ingest", *arguments, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await client.communicate()
    if client.returncode:
        raise SystemExit("the client failed; its reason is above")
    return float(output)


async def _forget(batches: Sequence[EventBatch]) -> Sequence[Appended]:
    return [Appended(seqs=(1,) * len(batch.events)) for batch in batches]


async def _committed(store: Store, events: int, seconds: float) -> float:
    """Append what a request holds, parsed beforehand, from as many callers as there are connections."""

    def batches(number: int) -> list[EventBatch]:
        body = json.loads(_request(number, events).partition(b"\r\n\r\n")[2])
        return [EventBatch(batch.events, (f"bare:{key}",)) for batch in read_events(body) for key in batch.dedupe_keys]

    ready = [batches(number) for number in range(int(20_000 * seconds / events) + CONNECTIONS)]

    async def append(number: int) -> None:
        if number < len(ready):
            await store.append_batches(ready[number])

    started = time.perf_counter()
    await asyncio.gather(*(_chain(append, range(place, len(ready), CONNECTIONS)) for place in range(CONNECTIONS)))
    return len(ready) * events / (time.perf_counter() - started)


async def _chain(append: Callable[[int], Awaitable[object]], numbers: Sequence[int]) -> None:
    for number in numbers:
        await append(number)


async def _compare(seconds: float) -> None:
    print(f"{'native events a second':<34}{'durable':>9}{'not stored':>12}{'ratio':>7}{'bare commit':>13}{'ratio':>7}")
    for name, events in (("one by one", 1), (f"in arrays of {ARRAY}", ARRAY)):
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            async with Store.open(Path(folder) / "served.db") as store:
                durable = await _served(store.append_batches, events, seconds)
            answered = await _served(_forget, events, seconds)
            async with Store.open(Path(folder) / "bare.db") as store:
                bare = await _committed(store, events, seconds)
        label = f"{name}, {CONNECTIONS} connections"
        beside = f"{answered:>12,.0f}{durable / answered:>7.2f}{bare:>13,.0f}{durable / bare:>7.2f}"
        print(f"{label:<34}{durable:>9,.0f}{beside}")


def main(arguments: Sequence[str]) -> None:
    """Run the comparison, or be its client."""
    configure_logging("json", "error")
    if arguments[:1] == ["client"]:
        port, events, seconds = arguments[1:]
        asyncio.run(_client(int(port), int(events), float(seconds)))
    else:
        asyncio.run(_compare(float(arguments[0]) if arguments else 3.0))


if __name__ == "__main__":
    main(sys.argv[1:])
