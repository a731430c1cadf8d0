"""What nobody foresaw stays with the piece of work that met it: it is logged with its trace, and the rest goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import structlog

log = structlog.get_logger(__name__)

ENDS: Final = (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)
"""What is to end a task, and is nothing unforeseen."""


@dataclass(slots=True)
class Met:
    """What came out of a piece of work, once its block has ended."""

    error: BaseException | None = None


@contextmanager
def contained(event: str, *foreseen: type[Exception], **facts: object) -> Iterator[Met]:
    """Log as `event` whatever comes out of the block, but let through what is `foreseen`, and what ends the service."""
    met = Met()
    try:
        yield met
    except BaseException as error:  # pycrdt, being written in Rust, panics with a BaseException
        if isinstance(error, (*ENDS, *foreseen)):
            raise
        met.error = error
        log.error(event, exc_info=error, **facts)
