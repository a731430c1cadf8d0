"""Changes that take more than one step: none is broken off in a commit, whatever becomes of its caller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Outcome(asyncio.Future[T], Generic[T]):
    """What becomes of a commit. Who waits for it can't be cancelled before it is known, only then."""

    def cancel(self, msg: object = None) -> bool:
        """Refuse: the commit is under way. asyncio cancels the task when it goes on."""
        return False


class Changes:
    """The changes under way, by the task that runs each, with what has cancelled it meanwhile."""

    def __init__(self) -> None:
        self._under_way: dict[asyncio.Task[object], asyncio.CancelledError | None] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self, change: Awaitable[T]) -> T:
        """Run a change; a cancellation that came in one of its commits is raised in its end."""
        task = _current_task()
        self._idle.clear()
        self._under_way[task] = None
        try:
            result = await change
        except Exception as error:  # whatever refused the change, a cancelled caller hears of the cancellation
            if (cancelled := self._under_way[task]) is None:
                raise
            log.debug("change_refused", error=str(error))
            raise cancelled from error
        else:
            if (cancelled := self._under_way[task]) is not None:
                raise cancelled
            return result
        finally:
            del self._under_way[task]
            if not self._under_way:
                self._idle.set()

    async def committed(self, outcome: Outcome[T]) -> T:
        """Wait for a commit, to its end; inside a change, a cancellation is put off to the end of that."""
        try:
            return await outcome
        except asyncio.CancelledError as cancelled:
            task = _current_task()
            if task not in self._under_way:
                raise
            self._under_way[task] = cancelled
            return outcome.result()

    async def until_none(self) -> None:
        """Wait until no change is under way."""
        await self._idle.wait()


def _current_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task
