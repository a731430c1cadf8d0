"""A process of its own with the listener on the real store, for tests that kill it: `python -m … DATABASE`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from bot.health import Health
from bot.ingest import IngestServer
from bot.logs import configure_logging
from crdt import Store
from tests.bot.ingest.raw_http import TOKEN
from tests.bot.ingest.senders import source


async def serve(database: Path) -> None:
    """Serve until the process ends; the port is the first line of the output."""
    async with (
        Store.open(database) as store,
        IngestServer(
            store.append_batches,
            [TOKEN],
            "127.0.0.1",
            0,
            Health(),
            sources=[source("github")],
            append_gap=store.append_event,
        ) as server,
    ):
        sys.stdout.write(f"{server.port}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    configure_logging("json", "error")
    asyncio.run(serve(Path(sys.argv[1])))
