"""Cancelling a call at a chosen point of its life."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class _Cut:
    """Awaits a coroutine and has its task cancelled at its suspension number `at`, counted from 0."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int) -> None:
        self._coroutine = coroutine
        self._at = at

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._coroutine.__await__()
        go_on: Callable[[Any], Any] = inner.send
        given: Any = None
        suspensions = 0
        while True:
            try:
                waited_for = go_on(given)
            except StopIteration as end:
                return end.value
            if suspensions == self._at:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            suspensions += 1
            try:
                given = yield waited_for
                go_on = inner.send
            except BaseException as error:
                go_on, given = inner.throw, error


async def cut_at_suspension(make: Callable[[], Coroutine[Any, Any, T]], at: int) -> T | None:
    """Run a call and cancel it where it waits for the time number `at`; `None` if that ended it."""

    async def run() -> T:
        result: T = await _Cut(make(), at)
        return result

    return await _result(asyncio.create_task(run()))


async def cut_after_turns(make: Callable[[], Coroutine[Any, Any, T]], turns: int | None) -> T | None:
    """Run a call and cancel it after so many turns of the event loop; `None` if that ended it. `None` lets it run."""
    if turns is None:
        return await make()
    task = asyncio.create_task(make())
    for _ in range(turns):
        if task.done():
            break
        await asyncio.sleep(0)
    task.cancel()
    return await _result(task)


async def _result(task: asyncio.Task[T]) -> T | None:
    try:
        return await task
    except asyncio.CancelledError:
        return None
