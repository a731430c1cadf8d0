"""The whole of the encryption towards the rest of `bot.matrix`: opened with the login, then fed with each sync."""

from __future__ import annotations

import math
import time
from typing import Any, Final
from uuid import uuid4

import structlog

from bot.matrix.e2ee.devices import Devices
from bot.matrix.e2ee.identity import Identity as CrossSigning
from bot.matrix.e2ee.identity import judge
from bot.matrix.e2ee.json_signing import Json
from bot.matrix.e2ee.machine import Machine, Unreadable
from bot.matrix.e2ee.members import Members
from bot.matrix.e2ee.model import Counts, Encrypted, EncryptionSettings, KeysLeft, Settings, ToDevice
from bot.matrix.e2ee.own_keys import MEGOLM
from bot.matrix.e2ee.pending import Pending
from bot.matrix.e2ee.sharing import Sharing
from bot.matrix.e2ee.vault import Vault
from bot.matrix.e2ee.verification import Verifications
from bot.matrix.errors import KeysDamaged, KeysLost, KeysRefused, LoggedOut, RateLimited, Refused, Unreachable
from bot.matrix.model import Identity, Undecryptable
from bot.matrix.values import as_object
from bot.matrix.wire import Wire

log = structlog.get_logger(__name__)

GENERATION: Final = "matrix_key_store_generation"
"""The setting that counts the openings of the key file, as the file itself does: a file that is behind is a copy."""
REPLACED_EVERY_S: Final = 3600.0
"""How often at most the identity of another client is replaced while the service runs: people are told each time."""
TRUST_EVERY_S: Final = 30.0
"""How often at most the bot looks at its own identity. Synapse lists a user as changed whenever it repeats that user's
membership, which with several rooms it does after most of the bot's own messages."""
_LOST: Final = "lost"
_KEY_KIND: Final = "signed_curve25519"


class Encryption:
    """Reads and writes encrypted rooms as one device. All methods may raise what the network raises."""

    def __init__(self, wire: Wire, settings: Settings, options: EncryptionSettings) -> None:
        self._wire = wire
        self._settings = settings
        self._options = options
        self._vault = Vault(options.beside, options.pickle_key)
        self._members = Members(wire)
        self._opened_machine: Machine | None = None
        self._devices: Devices
        self._sharing: Sharing
        self._pending: Pending
        self._verifications: Verifications
        self._cross_signing: CrossSigning
        self._trust_in_doubt, self._trust_seen_to = False, -math.inf
        self._replaced_until = 0.0
        self._told: list[Undecryptable] = []
        self._given_until: str | None = None
        self._decrypted = self._noticed = self._waiting = 0

    @property
    def _machine(self) -> Machine:
        assert self._opened_machine is not None, "open() comes first"
        return self._opened_machine

    async def open(self, identity: Identity) -> None:
        """Take up the keys of the device that is logged in, or make them, and have the server and others know them.

        Raises `KeysLost` when the server knows keys of the device that are not, or not any more, those at hand; then
        a new device is needed. Raises `PickleKeyWrong`.
        """
        machine = self._opened_machine
        if machine is None or machine.device_id != identity.device_id:
            machine = await self._load(identity)
            at_server = await self._seen_by_others(machine)
            self._take_up(machine)
        else:
            at_server = await self._seen_by_others(machine)
        try:
            await self._upload_keys(None if machine.own.published else KeysLeft(0, fallback=False))
        except KeysRefused as error:
            raise KeysLost(identity.device_id, error.reason) from error
        self._cross_signing = CrossSigning(self._wire, self._settings, machine, self._options.password)
        try:
            await self._cross_signing.establish(at_server)
        except Refused as error:
            log.error("device_not_cross_signed", device=identity.device_id, reason=str(error))
        self._verifications = Verifications(machine, self._devices, self._options.admins, self._cross_signing)

    async def _load(self, identity: Identity) -> Machine:
        try:
            await self._vault.run(self._vault.open, identity.user_id, identity.device_id)
            return await self._vault.run(Machine, self._vault, identity.user_id, identity.device_id)
        except KeysDamaged as error:
            raise KeysLost(identity.device_id, f"the key file is damaged: {error.problem}") from error

    def _take_up(self, machine: Machine) -> None:
        self._opened_machine = machine
        self._devices = Devices(self._wire, machine)
        self._sharing = Sharing(machine, self._devices, self._members)
        self._pending = Pending(self._vault, parse_encrypted)

    async def _seen_by_others(self, machine: Machine) -> Json:
        """Ask what the server shows of the bot's own keys. Raises `KeysLost`."""
        at_server = await Devices(self._wire, machine).query([machine.user_id])
        await self._compare(machine, at_server)
        return at_server

    async def _compare(self, machine: Machine, at_server: Json) -> None:
        """See that the keys at hand are the device's: those that the server shows, and no older copy of them."""
        listed = as_object(
            as_object(as_object(at_server.get("device_keys")).get(machine.user_id)).get(machine.device_id)
        )
        name = f"{GENERATION}:{machine.device_id}"
        expected = int(await self._settings.read_setting(name) or 0)
        found = int(await self._vault.run(self._vault.fact, "generation") or 0)
        if await self._vault.run(self._vault.fact, _LOST):
            raise KeysLost(machine.device_id, "the homeserver has newer keys under the same names")
        if found < expected:
            problem = "the key file is gone" if found == 0 else "the key file is an older copy of itself"
            raise KeysLost(machine.device_id, problem)
        if listed and as_object(listed.get("keys")).get(f"ed25519:{machine.device_id}") != machine.own.identity[1]:
            raise KeysLost(machine.device_id, "the homeserver shows other keys than those in the key file")
        if not listed:
            await self._vault.run(machine.own.forget_upload)
        await self._vault.run(self._vault.note, "generation", str(found + 1))
        await self._settings.write_settings({name: str(found + 1)})

    async def close(self) -> None:
        """Close the key file."""
        await self._vault.close()

    async def retire_former_devices(self) -> None:
        """Delete the keys of all devices but this one."""
        await self._vault.run(self._vault.remove_others, self._machine.device_id)

    # --- from the homeserver

    async def receive(self, answer: Json, since: str | None) -> None:
        """Take over what a sync says to this device, before its rooms are read. `since` is what was asked with."""
        if since is not None and since == self._given_until and (self._pending.given_out or self._told):
            await self._vault.run(self._admitted, self._told)
        self._told = []
        self._given_until = None  # what this step gives out is not in the inbox, should it break off and be repeated
        changes = as_object(answer.get("device_lists"))
        changed = _strings(changes.get("changed")) + _strings(changes.get("left"))
        self._devices.changed(changed)
        self._trust_in_doubt |= self._machine.user_id in changed
        events = [
            event for each in _list(as_object(answer.get("to_device")).get("events")) if (event := _to_device(each))
        ]
        encrypted = [each for each in events if each.kind == "m.room.encrypted"]
        if encrypted:
            await self._vault.run(self._machine.open_all, encrypted)
        for event in events:
            if event.kind.startswith("m.key.verification."):
                await self._verify(event)
        try:
            left = _keys_left(answer) or await self._devices.count_keys()
            if await self._devices.have_errands(left):
                await self._upload_keys(left)
                await self._devices.begin_sessions(set())
            if self._trust_in_doubt and time.monotonic() >= self._trust_seen_to + TRUST_EVERY_S:
                await self._see_to_trust()
        except (Unreachable, RateLimited, Refused) as error:
            log.warning("keys_not_uploaded", reason=str(error))  # the next sync tells the count again
        except KeysRefused as error:  # the login is taken up again, which finds the mark and makes a new device
            raise LoggedOut(self._machine.user_id, self._wire.homeserver, soft=False) from error

    async def _see_to_trust(self) -> None:
        """See whether others still trust this device, since another client may have replaced the account's identity.

        Then it is replaced again; but not over and over, if somebody else does the same.
        """
        at_server = await self._devices.query([self._machine.user_id])
        seen = judge(at_server, self._machine.user_id, self._machine.device_id)
        self._trust_in_doubt, self._trust_seen_to = False, time.monotonic()
        if seen.trusted and seen.master_key == self._cross_signing.master_key:
            return
        now = time.monotonic()
        if now < self._replaced_until:
            log.error("identity_contested", user=seen.user_id, advice="let one client alone make it, then restart")
            return
        log.warning("identity_replaced_by_another_client", user=seen.user_id, action="a new one is made")
        self._replaced_until = now + REPLACED_EVERY_S
        await self._cross_signing.establish(at_server)

    async def _verify(self, event: ToDevice) -> None:
        try:
            await self._verifications.receive(event)
        except Refused as error:
            log.warning("verification_failed", user=event.sender, reason=str(error))

    async def _upload_keys(self, left: KeysLeft | None) -> None:
        try:
            await self._devices.upload(left)
        except KeysRefused as error:
            await self._vault.run(self._vault.note, _LOST, error.reason)
            log.error("key_store_is_behind", device=self._machine.device_id, reason=error.reason)
            raise

    def _admitted(self, told: list[Undecryptable]) -> None:
        """What the last step gave out is in the inbox and the outbox. On the vault's thread."""
        with self._vault.atomic():
            self._pending.forget_emitted()
            for one in told:
                self._pending.noticed(one)

    def room_changed(self, room_id: str) -> None:
        """The room's members may have changed."""
        self._members.changed(room_id)

    async def remember_rules(self, room_id: str, rules: Json) -> Json:
        """A room has this `m.room.encryption`; returns how the room is to be encrypted, now and for ever."""
        return await self._vault.run(self._machine.remember_rules, room_id, rules)

    def rules_of(self, room_id: str) -> Json | None:
        """How a room is encrypted that was ever seen to be, in this process or before."""
        return self._machine.rules.get(room_id)

    async def read(self, room_id: str, source: Json) -> Json | None:
        """Decrypt an event of a room. `None` if it can't be: then it is kept, if it matters, and its key asked for."""
        event = parse_encrypted(room_id, source)
        if event is None or event.sender == self._machine.user_id or not self._options.allows(event.sender):
            return None
        try:
            opened = await self._vault.run(self._machine.read, event)
        except Unreadable as error:
            log.warning("message_unreadable", session=room_id, message=event.event_id, problem=error.problem)
            if error.waits and await self._vault.run(self._pending.add, event):
                try:
                    await self._ask_for_key(event)
                except Refused as refused:
                    log.warning("key_not_requested", user=event.sender, session=room_id, reason=str(refused))
            return None
        self._decrypted += 1
        return opened

    async def _ask_for_key(self, event: Encrypted) -> None:
        """Ask the sender's devices for the key (client-server API, "Key requests")."""
        request = {
            "action": "request",
            "body": {
                "algorithm": MEGOLM,
                "room_id": event.room_id,
                "session_id": event.session_id,
                "sender_key": event.sender_key or "",
            },
            "request_id": uuid4().hex,
            "requesting_device_id": self._machine.device_id,
        }
        await self._devices.send("m.room_key_request", {event.sender: {"*": request}})
        await self._vault.run(self._pending.asked, event)
        log.info("key_requested", user=event.sender, session=event.room_id)

    async def now_readable(self) -> list[tuple[str, Json]]:
        """Messages from before whose keys have come: room id and decrypted event."""
        found = await self._vault.run(self._pending.readable, self._machine)
        self._decrypted += len(found)
        return found

    async def forget_message(self, event_id: str) -> None:
        """A message was taken back."""
        await self._vault.run(self._pending.drop, event_id)

    async def end_step(self, next_batch: str) -> tuple[Undecryptable, ...]:
        """The step is about to be given out; returns what people should be told of."""
        self._given_until = next_batch
        self._waiting = await self._vault.run(self._pending.count)
        if self._waiting:
            self._told = await self._vault.run(self._pending.overdue, self._options.notice_after_s)
            self._noticed += len(self._told)
        return tuple(self._told)

    # --- to the homeserver

    async def write(self, room_id: str, rules: Json, kind: str, content: Json) -> Json:
        """Encrypt the content of an event for everybody in the room."""
        return await self._sharing.write(room_id, rules, kind, content)

    @property
    def counts(self) -> Counts:
        """What has been done so far."""
        return Counts(self._waiting, self._decrypted, self._sharing.written, self._noticed)


def parse_encrypted(room_id: str, source: object) -> Encrypted | None:
    """A room's `m.room.encrypted`, or `None` if it is no Megolm event."""
    event = as_object(source)
    content = as_object(event.get("content"))
    texts = (event.get("event_id"), event.get("sender"), content.get("session_id"), content.get("ciphertext"))
    event_id, sender, session_id, ciphertext = texts
    if content.get("algorithm") != MEGOLM or not all(isinstance(text, str) and text for text in texts):
        return None
    sender_key, origin_ms = content.get("sender_key"), event.get("origin_server_ts")
    return Encrypted(
        event_id=str(event_id),
        room_id=room_id,
        sender=str(sender),
        session_id=str(session_id),
        ciphertext=str(ciphertext),
        origin_ms=origin_ms if isinstance(origin_ms, int) else 0,
        source=dict(event),
        sender_key=sender_key if isinstance(sender_key, str) else None,
    )


def _to_device(event: object) -> ToDevice | None:
    fields = as_object(event)
    kind, sender, content = fields.get("type"), fields.get("sender"), fields.get("content")
    if not isinstance(kind, str) or not isinstance(sender, str) or not isinstance(content, dict):
        return None
    return ToDevice(kind, sender, content)


def _keys_left(answer: Json) -> KeysLeft | None:
    """What a sync tells of this device's keys at the server; it leaves out a kind of which there are none."""
    counts, unused = answer.get("device_one_time_keys_count"), answer.get("device_unused_fallback_key_types")
    one_time = counts.get(_KEY_KIND, 0) if isinstance(counts, dict) else None
    if not isinstance(one_time, int):
        return None
    return KeysLeft(one_time, fallback=not isinstance(unused, list) or _KEY_KIND in unused)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _strings(value: object) -> list[str]:
    return [each for each in _list(value) if isinstance(each, str)]
