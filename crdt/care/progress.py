"""How long work tells how far it has come."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how much of how much of it is. Both numbers are 0 where nobody can know."""


def unwatched(doing: str, done: int, total: int) -> None:
    """Nobody watches."""
