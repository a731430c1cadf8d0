"""One minute of the soak, with a seed that is fixed."""

from __future__ import annotations

from pathlib import Path

from bot.demo.homeserver import Homeserver
from tests.soak.run import Plan, prepared


async def test_a_minute_of_random_faults_and_kills_loses_and_repeats_nothing(
    synapse: Homeserver, tmp_path: Path
) -> None:
    async with prepared(Plan(minutes=1, rooms=4, seed=5), tmp_path, synapse) as soak:
        tally = await soak.run()
    assert not tally.findings, "\n".join(tally.lines())
    assert tally.counts["kills"] > 0
    assert tally.counts["turns"] > 4
