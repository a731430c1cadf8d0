"""Encrypts what the bot says in rooms, having first given the key to every device that is to read it.

The policy for devices that nobody has verified: they get the keys, as in any client with its usual settings. Who may
read is decided by who is in the room; a device that its owner has deleted gets nothing more, and the key is changed.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Final

import structlog
from nio.crypto import OutboundGroupSession  # type: ignore[import-untyped]

from bot.matrix.e2ee.devices import Devices
from bot.matrix.e2ee.json_signing import Json
from bot.matrix.e2ee.machine import Machine
from bot.matrix.e2ee.members import Members
from bot.matrix.e2ee.own_keys import MEGOLM
from bot.matrix.errors import UnknownEncryption
from bot.matrix.model import DELIVERY_ID_FIELD

log = structlog.get_logger(__name__)

_IN_THE_CLEAR: Final = ("m.relates_to", DELIVERY_ID_FIELD)
"""What a homeserver must see: relations (client-server API, "m.room.encrypted"), and how the bot finds its own."""


class Sharing:
    """Writes into encrypted rooms, one event of a room at a time."""

    def __init__(self, machine: Machine, devices: Devices, members: Members) -> None:
        self._machine = machine
        self._devices = devices
        self._members = members
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._given: dict[str, tuple[str, set[tuple[str, str]]]] = {}
        """By room: its present key, and the devices that have it."""
        self.written = 0

    async def write(self, room_id: str, rules: Json, kind: str, content: Json) -> Json:
        """Encrypt an event's content for everybody in the room. `rules` is the content of its `m.room.encryption`.

        Raises what the network raises, and `UnknownEncryption`: then nothing has been encrypted.
        """
        if rules.get("algorithm") != MEGOLM:
            raise UnknownEncryption(room_id, rules.get("algorithm"))
        async with self._locks[room_id]:
            session = await self._shared(room_id, rules)
            sealed = await self._machine.vault.run(self._machine.write, session, room_id, kind, content)
            self.written += 1
        return sealed | {field: content[field] for field in _IN_THE_CLEAR if field in content}

    async def _shared(self, room_id: str, rules: Json) -> OutboundGroupSession:
        """The room's key, with every device of its members having it."""
        members = await self._members.of(room_id)
        await self._devices.refresh(members)
        await self._devices.begin_sessions(members)
        run, machine = self._machine.vault.run, self._machine
        active = {(each.user_id, each.id): each for each in await run(machine.active_devices_of, members)}
        session = await run(
            machine.outbound, room_id, rules.get("rotation_period_ms"), rules.get("rotation_period_msgs")
        )
        given = self._given_of(room_id, session)
        if given - active.keys():  # somebody has left, or a device is gone
            session = await run(machine.new_outbound, room_id)
            given = self._given_of(room_id, session)
        lacking = await run(machine.with_session, [device for name, device in active.items() if name not in given])
        if lacking:
            key = {
                "algorithm": MEGOLM,
                "room_id": room_id,
                "session_id": session.id,
                "session_key": session.session_key,
            }
            async for told in self._devices.send_sealed(lacking, "m.room_key", key):
                given.update((each.user_id, each.id) for each in told)
            log.info("room_key_shared", session=room_id, devices=len(lacking), lacking=len(active) - len(given))
        return session

    def _given_of(self, room_id: str, session: OutboundGroupSession) -> set[tuple[str, str]]:
        """The devices that have a room's key; with a new key, those of the former are forgotten."""
        session_id, given = self._given.get(room_id, (None, set()))
        if session_id != session.id:
            given = set()
            self._given[room_id] = session.id, given
        return given
