"""`python -m tests.soak --minutes 10 --rooms 4 --seed 1`: what `make soak` runs."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from bot.demo.homeserver import Homeserver
from tests.soak.plan import Plan
from tests.soak.run import prepared


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


async def _soak(plan: Plan, folder: Path) -> bool:
    in_memory = not plan.encrypted
    async with (
        Homeserver.start(folder / "synapse", in_memory=in_memory) as synapse,
        prepared(plan, folder, synapse) as soak,
    ):
        try:
            tally = await soak.run()
        except Exception:  # whatever ends a run early: it is told, with what was seen so far
            _say(traceback.format_exc())
            soak.tally.findings.wrong.append("the run did not come to its end")
            tally = soak.tally
        _say(*tally.lines())
        return not tally.findings


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Musher between random faults.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rooms", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument(
        "--encrypted",
        type=int,
        default=0,
        metavar="ROOMS",
        help="encrypted rooms beside the plain ones. With some, the homeserver is restarted and killed, too, and the "
        "bot's logins are not ended: nobody can read on a new device what was said to the former one",
    )
    options = parser.parse_args()
    plan = Plan(options.minutes, options.rooms, options.seed, options.encrypted)
    folder = Path(tempfile.mkdtemp(prefix="musher-soak-"))
    rooms = f"{plan.rooms} plain and {plan.encrypted} encrypted rooms"
    _say(f"soak of {plan.minutes:g} minutes in {rooms}, seed {plan.seed}, in {folder}")
    if asyncio.run(_soak(plan, folder)):
        shutil.rmtree(folder)
        _say(f"passed (seed {plan.seed})")
        return
    _say(f"FAILED (seed {plan.seed}): logs, configuration and database are kept in {folder}")
    sys.exit(1)


if __name__ == "__main__":
    main()
