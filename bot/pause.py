"""Named pause points: where a test can stop the running service to see what a crash leaves behind.

With `MUSHER_PAUSE_AT=begin,sent` and `MUSHER_PAUSE_DIR=/some/folder` in the environment, the service stops the first
time that it reaches each named point: it writes the empty file `<point>` into the folder, then waits until that file is
removed. Without these variables a pause point costs one comparison. The points, each right after what it names:

- `admit`: messages and sync token are committed.
- `begin`: the turn is begun and committed; the model has not been asked.
- `model`: the model has answered; nothing of the answer is stored.
- `complete`: reply, deliveries and settled messages are committed; nothing is sent.
- `sent`: the homeserver has the delivery; the outbox does not know it yet.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bot.errors import MusherError

POINTS: Final = ("admit", "begin", "model", "complete", "sent")
_LOOK_EVERY_S: Final = 0.02


class UnknownPausePoint(MusherError):
    """The environment names a pause point that there is not."""

    def __init__(self, name: str) -> None:
        super().__init__(f"MUSHER_PAUSE_AT names {name!r}: allowed are {', '.join(POINTS)}")


class PausePoints:
    """The points at which to stop, each once."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        names = [name.strip() for name in environ.get("MUSHER_PAUSE_AT", "").split(",") if name.strip()]
        for name in names:
            if name not in POINTS:
                raise UnknownPausePoint(name)
        self._left = set(names)
        self._folder = Path(environ.get("MUSHER_PAUSE_DIR", "."))

    async def reached(self, name: str) -> None:
        """Stop here if this point is asked for and was not reached before."""
        if name not in self._left:
            return
        self._left.remove(name)
        mark = self._folder / name
        await asyncio.to_thread(mark.touch)
        while await asyncio.to_thread(os.path.exists, mark):  # noqa: ASYNC110 - another process removes it
            await asyncio.sleep(_LOOK_EVERY_S)
