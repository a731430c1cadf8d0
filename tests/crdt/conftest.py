"""Fixtures for the store's tests: a path for a real SQLite file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crdt import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the test's database stands."""
    return tmp_path / "musher.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    """An open store of the sled `build-1`."""
    async with Store.open(path, sled_id="build-1") as opened:
        yield opened
