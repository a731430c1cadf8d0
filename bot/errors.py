"""The bot's errors for people: what happened, to what, and what to do next.

`musher` prints each of them without a traceback and ends with the class's exit code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class MusherError(Exception):
    """The root of every error that the bot raises for a person to read."""

    exit_code: ClassVar[int] = 1


class ConfigError(MusherError):
    """The configuration can't be used; `problems` names all of them, one line each, secrets hidden."""

    exit_code: ClassVar[int] = 2

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__(self._message())

    def _message(self) -> str:
        if len(self.problems) == 1:
            return f"{self.source}: {self.problems[0]}"
        return "\n  ".join([f"{self.source} has {len(self.problems)} problems:", *self.problems])
