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


class ListenFailed(MusherError):
    """The address of a listener can't be had; `section` of the configuration names it. No request was served."""

    def __init__(self, section: str, host: str, port: int, error: OSError | UnicodeError) -> None:
        # A name with an empty label, or with one of over 63 bytes, fails before anybody is asked for it.
        problem = "no host can have that name" if isinstance(error, UnicodeError) else error.strerror or str(error)
        super().__init__(
            f"can't listen on {host}:{port} ({problem}): "
            f"stop what uses that address, or change {section}.host or {section}.port"
        )
