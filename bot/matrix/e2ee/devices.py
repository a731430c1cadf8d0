"""Other people's devices, and this one's keys at the server: what `machine` needs of the network."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from typing import Final, TypeVar
from uuid import uuid4

import structlog
from nio.crypto import OlmDevice  # type: ignore[import-untyped]

from bot.matrix.e2ee.json_signing import Json
from bot.matrix.e2ee.machine import Machine
from bot.matrix.e2ee.model import KeysLeft
from bot.matrix.errors import KeysRefused, MatrixError, Refused
from bot.matrix.second_asks import HEAVY, USUAL, Patience
from bot.matrix.values import as_object
from bot.matrix.wire import Wire

log = structlog.get_logger(__name__)

T = TypeVar("T")

LOW_KEYS: Final = 25
"""One-time keys at the server below which new ones are uploaded."""
DEVICES_A_REQUEST: Final = 50
"""A message for each, sealed, is about 2 kB: far below any server's limit. Also how many are saved in one commit."""
USERS_A_QUERY: Final = 1000
"""The answer has some 2 kB for each."""
COUNT_EVERY_S: Final = 600.0
"""How often at most the server is asked for the count that it does not tell."""
RETRY_AFTER_S: Final = 60.0
"""Before a server that gave no answer, or a device without one-time keys, is asked again."""
_REMOTE_TIMEOUT_MS: Final = 8_000
"""How long our homeserver is to wait for those of other users: less than we do."""
FEW_USERS: Final = 20
"""So many are no long work for a homeserver."""


class Devices:
    """Keeps the lists of devices that are in use up to date. All of them are asked for anew in each process."""

    def __init__(self, wire: Wire, machine: Machine) -> None:
        self._wire = wire
        self._machine = machine
        self._fresh: set[str] = set()
        self._changes: dict[str, int] = {}
        self._asked_in_vain: dict[str, float] = {}
        self._counted_at = -math.inf

    def changed(self, users: Iterable[str]) -> None:
        """The server says that these users' devices are not what they were."""
        for user in users:
            self._fresh.discard(user)
            self._asked_in_vain.pop(user, None)
            self._changes[user] = self._changes.get(user, 0) + 1

    async def refresh(self, users: set[str]) -> None:
        """Ask for the devices of those users whose list may be out of date."""
        stale = sorted(user for user in users - self._fresh if self._may_ask(user))
        for some in _parts(stale, USERS_A_QUERY):
            await self._refresh(some)

    async def _refresh(self, users: list[str]) -> None:
        before = {user: self._changes.get(user, 0) for user in users}
        answer = await self.query(users)
        listed = as_object(answer.get("device_keys"))
        for user in users:
            if user not in listed:
                self._asked_in_vain[user] = time.monotonic()
                log.warning(
                    "devices_not_listed", user=user, advice="its homeserver can't be reached; asked again later"
                )
        for some in _parts([user for user in users if user in listed], DEVICES_A_REQUEST):
            learnt = {user: as_object(listed[user]) for user in some}
            await self._machine.vault.run(self._machine.learn_devices, learnt)
            self._fresh.update(user for user in some if self._changes.get(user, 0) == before[user])

    async def query(self, users: Iterable[str]) -> Json:
        """The server's own words on these users' devices and identities."""
        asked: dict[str, list[str]] = {user: [] for user in users}
        body = {"device_keys": asked, "timeout": _REMOTE_TIMEOUT_MS}
        return await self._wire.post("keys", "query", body=body, patience=self._patience(asked))

    def _patience(self, users: Collection[str]) -> Patience:
        """Syncs wait for these requests; so they, too, are made again where they are swallowed.

        Other homeservers may be slow. A key that is claimed twice is no loss.
        """
        server = self._machine.user_id.partition(":")[2]
        is_short = len(users) <= FEW_USERS and all(user.partition(":")[2] == server for user in users)
        return USUAL if is_short else HEAVY

    async def begin_sessions(self, users: set[str]) -> None:
        """Make Olm sessions with those devices of the users that have none, and mend the broken ones."""
        vault = self._machine.vault
        devices: list[OlmDevice] = await vault.run(self._machine.without_session, users)
        devices = [each for each in devices if self._may_ask(each.curve25519)]
        for some in _parts(devices, DEVICES_A_REQUEST):
            await self._claim(some)
        await self._send_outgoing()

    async def _send_outgoing(self) -> None:
        outgoing = await self._machine.vault.run(self._machine.take_outgoing)
        try:
            while outgoing:
                message = outgoing[0]
                await self.send(message.type, {message.recipient: {message.recipient_device: message.content}})
                outgoing.pop(0)
        except MatrixError as error:
            unsent = outgoing[1:] if isinstance(error, Refused) else outgoing
            await self._machine.vault.run(self._machine.give_back, unsent)
            raise

    async def _claim(self, devices: list[OlmDevice]) -> None:
        wanted: dict[str, dict[str, str]] = {}
        for device in devices:
            wanted.setdefault(device.user_id, {})[device.id] = "signed_curve25519"
        body = {"one_time_keys": wanted, "timeout": _REMOTE_TIMEOUT_MS}
        answer = await self._wire.post("keys", "claim", body=body, patience=self._patience(wanted))
        given = as_object(answer.get("one_time_keys"))
        claimed = [(each, as_object(as_object(given.get(each.user_id)).get(each.id))) for each in devices]
        for device in await self._machine.vault.run(self._machine.begin_sessions, claimed):
            self._asked_in_vain[device.curve25519] = time.monotonic()
            log.warning("device_has_no_key_to_begin_with", user=device.user_id, device=device.id)

    def _may_ask(self, whom: str) -> bool:
        asked = self._asked_in_vain.get(whom)
        return asked is None or time.monotonic() - asked > RETRY_AFTER_S

    async def send_sealed(self, devices: list[OlmDevice], kind: str, content: Json) -> AsyncIterator[list[OlmDevice]]:
        """Send one message to each device, encrypted for it; those without a session get nothing.

        Yields, request by request, the devices that were told.
        """
        for some in _parts(devices, DEVICES_A_REQUEST):
            sealed = await self._machine.vault.run(self._machine.seal, some, kind, content)
            if sealed:
                await self.send("m.room.encrypted", sealed)
            yield some

    async def send(self, kind: str, messages: dict[str, Json]) -> None:
        """Send messages to devices, as they are: `{user: {device: content}}`."""
        await self._wire.put("sendToDevice", kind, uuid4().hex, body={"messages": messages})

    async def have_errands(self, left: KeysLeft | None) -> bool:
        """Whether there is anything to `upload`, or for `begin_sessions` to do without users."""
        machine = self._machine

        def have_errands() -> bool:
            keys = machine.own.keys_to_upload(left, LOW_KEYS)
            return keys is not None or bool(machine.without_session(set()) or machine.olm.outgoing_to_device_messages)

        return await machine.vault.run(have_errands)

    async def count_keys(self) -> KeysLeft | None:
        """Ask for what the server still has; `None` where that was asked a short while ago.

        Conduit and its kin, and Dendrite, leave the count out of a sync both when it is zero and when it is as before.
        """
        now = time.monotonic()
        if now - self._counted_at < COUNT_EVERY_S:
            return None
        self._counted_at = now
        counts = as_object(
            (await self._wire.post("keys", "upload", body={}, patience=USUAL)).get("one_time_key_counts")
        )
        one_time = counts.get("signed_curve25519", 0)
        return KeysLeft(one_time, fallback=True) if isinstance(one_time, int) else None

    async def upload(self, left: KeysLeft | None) -> None:
        """Give the server what it lacks of this device's keys. `left`: what it still has, as far as that is known.

        The keys are saved before they are sent: a key that is at the server but not in the vault would make whoever
        takes it unreadable. Raises `KeysRefused` where the server has others under the same names.
        """
        vault = self._machine.vault
        body = await vault.run(self._machine.own.keys_to_upload, left, LOW_KEYS)
        if body is None:
            return
        try:
            await self._wire.post("keys", "upload", body=body, patience=USUAL)
        except Refused as error:
            if "already exists" in error.message:
                raise KeysRefused(error.message) from error
            raise
        await vault.run(self._machine.own.uploaded)
        counts = {name: len(body.get(name, ())) for name in ("one_time_keys", "fallback_keys")}
        log.info("keys_uploaded", **counts, device_keys="device_keys" in body)


def _parts(whole: list[T], size: int) -> Iterator[list[T]]:
    return (whole[start : start + size] for start in range(0, len(whole), size))
