"""What a soak is asked to be, and what it tells at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.soak.oracle import Findings


@dataclass(frozen=True, slots=True)
class Plan:
    """What a soak is asked to be; the same plan draws the same faults."""

    minutes: float
    rooms: int
    seed: int
    encrypted: int = 0
    """Encrypted rooms beside the plain ones. With some, the homeserver is restarted, and the bot's logins and keys are
    left alone: nobody can read on a new device what was said to the former one."""


@dataclass(slots=True)
class Tally:
    """What a soak did and saw."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    findings: Findings = field(default_factory=Findings)

    def lines(self) -> list[str]:
        """It as people read it."""
        found = self.findings
        return [
            ", ".join(f"{name} {number}" for name, number in sorted(self.counts.items())),
            "faults: " + ", ".join(f"{name} {number}" for name, number in sorted(self.faults.items())),
            f"lost {len(found.lost)}, twice {len(found.twice)}, wrong {len(found.wrong)}",
            *(f"  {each}" for each in (*found.lost, *found.twice, *found.wrong)),
        ]
