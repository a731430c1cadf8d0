"""Ends of the homeserver itself, which the people of the plain rooms sit out."""

from __future__ import annotations

import asyncio
from typing import Any

from bot.demo.homeserver import Homeserver
from tests.servers.synapse import Person


class Outages:
    """Restarts the homeserver between the requests of those people who wait for it; everybody else is cut off."""

    def __init__(self, synapse: Homeserver) -> None:
        self._synapse = synapse
        self._under_way = 0
        self._up, self._idle = asyncio.Event(), asyncio.Event()
        self._up.set()
        self._idle.set()

    async def enter(self) -> None:
        """Begin a request, once the homeserver is there."""
        await self._up.wait()
        self._under_way += 1
        self._idle.clear()

    def leave(self) -> None:
        """Be done with a request."""
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()

    async def restart(self, *, killed: bool) -> None:
        """End the homeserver, in order or as a power cut would, and start it again with what it has on the disk."""
        self._up.clear()
        await self._idle.wait()
        if killed:
            await self._synapse.kill()
        await self._synapse.restart()
        self._up.set()


class PatientPerson(Person):
    """Asks nothing of a homeserver that is about to end. What a kick has done that was cut off, nobody would know."""

    outages: Outages

    async def request(self, method: str, *path: str, body: object = None, **query: str | int) -> Any:
        await self.outages.enter()
        try:
            return await super().request(method, *path, body=body, **query)
        finally:
            self.outages.leave()
