"""Fixtures: a database with something in every table, and where its backup stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from crdt import Store
from tests.crdt.care.life import live


@pytest.fixture
async def full(path: Path) -> Path:
    """A closed database after such a life; its log has three sealed segments, compacted, and a live one."""
    async with Store.open(path, sled_id="build-1", segment_events=5) as store:
        await live(store)
    return path


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """Where a backup is to stand."""
    return tmp_path / "backup.db"
