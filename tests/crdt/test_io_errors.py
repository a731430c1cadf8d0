"""A disk that refuses a call now and then: each step happens as a whole or not at all, and goes through later."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from crdt import Store, StoreUnavailable
from crdt.care.verify import verify_database
from tests.crdt.disk import FULL, IO_ERROR, Call, library, watched
from tests.crdt.test_every_write import REST, TURN, Step, but_attempts, contents_of, open_store, small_parts

pytestmark = pytest.mark.skipif(library() is None, reason="SQLite is built into this Python and can't be watched")

LIVES = int(os.environ.get("MUSHER_IO_ERRORS", "3"))

__all__ = ["small_parts"]


class Failing:
    """Refuses calls by chance while `chance` is set."""

    def __init__(self) -> None:
        self.chance: random.Random | None = None
        self.refused = 0

    def see(self, call: Call, _put: object) -> int | None:
        if self.chance is None or self.chance.random() > 0.04:
            return None
        self.refused += 1
        return FULL if call.kind == "write" and self.chance.random() < 0.5 else IO_ERROR


async def insist(store: Store, step: Step) -> None:
    """Take a step as callers do: again and again, until it is acknowledged."""
    while True:
        try:
            await step(store)
        except StoreUnavailable:
            continue
        return


@pytest.mark.parametrize("seed", range(LIVES))
async def test_errors_of_the_disk_lose_and_repeat_nothing(path: Path, tmp_path: Path, seed: int) -> None:
    whole = tmp_path / "whole.db"
    async with open_store(whole) as store:
        for step in (*TURN, *REST):
            await step(store)
    disk = Failing()
    with watched(disk.see):
        async with open_store(path) as store:
            disk.chance = random.Random(seed)
            for step in (*TURN, *REST):
                await insist(store, step)
            disk.chance = None
            await store.append_events([])
    assert disk.refused
    assert but_attempts(await contents_of(path)) == but_attempts(await contents_of(whole))
    assert verify_database(path).problems == ()
