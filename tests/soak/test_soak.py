"""One minute of the soak, with a seed that is fixed."""

from __future__ import annotations

from pathlib import Path

from bot.demo.homeserver import Homeserver
from tests.soak.plan import Plan
from tests.soak.run import prepared


async def test_a_minute_of_random_faults_and_kills_loses_and_repeats_nothing(
    synapse: Homeserver, tmp_path: Path
) -> None:
    async with prepared(Plan(minutes=1, rooms=4, seed=54), tmp_path, synapse) as soak:
        tally = await soak.run()
    assert not tally.findings, "\n".join(tally.lines())
    assert tally.counts["kills"] > 0
    assert tally.counts["turns"] > 4
    for kind in ("homeserver", "model", "disk", "clock", "rot"):
        assert any(name.startswith(kind) for name in tally.faults), f"no fault of the {kind} was drawn"
    assert tally.counts["calls that the disk refused"] > 0
    assert tally.counts["events put off with 503"] > 0
