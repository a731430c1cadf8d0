from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from bot.health import Health
from bot.ingest import IngestServer
from crdt import Appended, EventBatch
from tests.bot.ingest.raw_http import TOKEN


class RecordingAppend:
    """Appends to a list in memory, with seqs and deduplication like the log's, and fails when told to."""

    def __init__(self) -> None:
        self.calls: list[list[EventBatch]] = []
        self.error: Exception | None = None
        self._known: set[str] = set()
        self._head = 0

    async def __call__(self, batches: Sequence[EventBatch]) -> Sequence[Appended]:
        if self.error:
            raise self.error
        self.calls.append(list(batches))
        return [self._append(batch) for batch in batches]

    def _append(self, batch: EventBatch) -> Appended:
        if self._known & set(batch.dedupe_keys):
            return Appended(seqs=(), duplicate=True)
        self._known |= set(batch.dedupe_keys)
        first = self._head + 1
        self._head += len(batch.events)
        return Appended(seqs=tuple(range(first, self._head + 1)))


@pytest.fixture
def append() -> RecordingAppend:
    return RecordingAppend()


@pytest.fixture
def health() -> Health:
    return Health("sync")


@pytest.fixture
async def server(append: RecordingAppend, health: Health) -> AsyncIterator[IngestServer]:
    async with IngestServer(
        append=append, tokens=["another-token", TOKEN], host="127.0.0.1", port=0, health=health
    ) as running:
        yield running
