"""Changes that take more than one step: none is broken off in a commit, whatever becomes of its caller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from functools import partial
from typing import Generic, TypeVar, cast

import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Outcome(Generic[T]):
    """What becomes of a commit, for the one task that awaits it, which can't be cancelled before it is known.

    To tasks it is a future (`asyncio.isfuture`), with one difference: the task goes on inside `settle`, not in the
    event loop's next round, which would cost a twenty-fifth of a small commit.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._outcome: T | BaseException | None = None
        self._is_known = False
        self._wake: partial[object] | None = None

    def settle(self, outcome: T | BaseException) -> None:
        """Tell the result of the commit, or what is to be raised."""
        self._outcome, self._is_known = outcome, True
        if self._wake is None:
            return
        if asyncio.current_task(self._loop) is None:
            self._wake()
        else:  # a task can't go on inside another
            self._loop.call_soon(self._wake)

    def result(self) -> T:
        """Give the result of the commit, or raise what it raised."""
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return cast(T, self._outcome)

    def cancel(self, msg: object = None) -> bool:
        """Refuse: the commit is under way. asyncio cancels the task when it goes on."""
        return False

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the task that awaits it."""
        return self._loop

    def add_done_callback(self, wake: Callable[[Outcome[T]], object], *, context: Context) -> None:
        """Have the task that awaits it go on once it is known."""
        self._wake = partial(context.run, wake, self)

    def __await__(self) -> Generator[Outcome[T], None, T]:
        if not self._is_known:
            self._asyncio_future_blocking = True
            yield self
        return self.result()


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
