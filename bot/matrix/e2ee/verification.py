"""Emoji verification that an admin starts over to-device messages (client-server API, "Short Authentication String").

The bot has no eyes: it writes the emoji into the log, a person compares them there with those on their own screen, and
confirms on their side. The bot follows once that confirmation has come, and has the right keys in it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import structlog
import vodozemac
from nio.crypto import OlmDevice  # type: ignore[import-untyped]
from nio.crypto.sas import Sas as NioSas  # type: ignore[import-untyped]

from bot.matrix.e2ee.devices import Devices
from bot.matrix.e2ee.identity import Identity
from bot.matrix.e2ee.json_signing import Json, canonical, unpadded
from bot.matrix.e2ee.machine import Machine
from bot.matrix.e2ee.model import ToDevice

log = structlog.get_logger(__name__)

LONGEST_S: Final = 600.0
MOST_OPEN: Final = 16

_METHOD: Final = "m.sas.v1"
_AGREEMENT: Final = "curve25519-hkdf-sha256"
_HASH: Final = "sha256"
_MAC: Final = "hkdf-hmac-sha256.v2"
"""Its predecessor, without `.v2`, is deprecated, and implemented in two ways that don't understand each other."""


@dataclass(slots=True)
class _Open:
    """One verification under way."""

    transaction_id: str
    device: OlmDevice
    began: float = field(default_factory=time.monotonic)
    sas: vodozemac.Sas = field(default_factory=vodozemac.Sas)
    own_key: str = ""
    start: Json | None = None
    their_key: str | None = None
    established: vodozemac.EstablishedSas | None = None


class _Cancelled(Exception):
    """The verification can't go on; `code` is the specification's."""

    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(reason)


class Verifications:
    """Answers verifications. `admins` may start one; everybody else's are declined.

    A step that comes again is answered again: the sync that brought it is repeated where the answer could not be sent.
    """

    def __init__(self, machine: Machine, devices: Devices, admins: frozenset[str], identity: Identity) -> None:
        self._machine = machine
        self._devices = devices
        self._admins = admins
        self._identity = identity
        self._open: dict[str, _Open] = {}

    async def receive(self, event: ToDevice) -> None:
        """Take one step of a verification."""
        kind = event.kind.removeprefix("m.key.verification.")
        transaction_id = event.content.get("transaction_id")
        if not isinstance(transaction_id, str) or not transaction_id or len(transaction_id) > 255:
            return
        try:
            match kind:
                case "request":
                    await self._requested(event, transaction_id)
                case "start":
                    await self._started(event, transaction_id)
                case "key":
                    await self._key(self._of(event, transaction_id), event.content)
                case "mac":
                    await self._mac(self._of(event, transaction_id), event.content)
                case "cancel":
                    if self._open.pop(transaction_id, None) is not None:
                        log.info("verification_cancelled", user=event.sender, reason=str(event.content.get("code")))
        except _Cancelled as cancelled:
            await self._cancel(event, transaction_id, cancelled)
        except (
            ValueError,
            KeyError,
            TypeError,
            RecursionError,
        ) as error:  # whatever stands in a content of somebody else's making
            malformed = _Cancelled("m.invalid_message", f"malformed: {type(error).__name__}")
            await self._cancel(event, transaction_id, malformed)

    def _of(self, event: ToDevice, transaction_id: str) -> _Open:
        found = self._open.get(transaction_id)
        if found is None or found.device.user_id != event.sender:
            raise _Cancelled("m.unknown_transaction", "there is no such verification")
        if time.monotonic() - found.began > LONGEST_S:
            raise _Cancelled("m.timeout", "it took too long")
        return found

    async def _begin(self, event: ToDevice, transaction_id: str) -> _Open:
        if event.sender not in self._admins:
            raise _Cancelled("m.user", "only those in matrix.admins may verify this device")
        found = self._open.get(transaction_id)
        if found is not None:
            return self._of(event, transaction_id)
        self._devices.changed([event.sender])
        await self._devices.refresh({event.sender})
        device = self._machine.olm.device_store[event.sender].get(event.content.get("from_device"))
        if device is None or device.deleted:
            raise _Cancelled("m.key_mismatch", "the device that asks is not known")
        for stale in [one for one, each in self._open.items() if time.monotonic() - each.began > LONGEST_S]:
            del self._open[stale]
        if len(self._open) >= MOST_OPEN:
            raise _Cancelled("m.user", "too many verifications are under way")
        self._open[transaction_id] = begun = _Open(transaction_id, device)
        log.info("verification_begun", user=event.sender, device=device.id)
        return begun

    async def _requested(self, event: ToDevice, transaction_id: str) -> None:
        methods = event.content.get("methods")
        if not isinstance(methods, list) or _METHOD not in methods:
            raise _Cancelled("m.unknown_method", "only m.sas.v1 is known here")
        begun = await self._begin(event, transaction_id)
        await self._send(begun, "ready", {"from_device": self._machine.device_id, "methods": [_METHOD]})

    async def _started(self, event: ToDevice, transaction_id: str) -> None:
        content = event.content
        begun = await self._begin(event, transaction_id)
        if begun.start not in (None, content):
            raise _Cancelled("m.unexpected_message", "it has been started already")
        fits = content["method"] == _METHOD and _AGREEMENT in content["key_agreement_protocols"]
        if not (fits and _HASH in content["hashes"] and _MAC in content["message_authentication_codes"]):
            raise _Cancelled("m.unknown_method", "no common method")
        if begun.start is None:
            begun.start, begun.own_key = content, begun.sas.public_key.to_base64()
        commitment = hashlib.sha256(begun.own_key.encode() + canonical(content)).digest()
        accepted = {
            "method": _METHOD,
            "key_agreement_protocol": _AGREEMENT,
            "hash": _HASH,
            "message_authentication_code": _MAC,
            "short_authentication_string": [
                one for one in ("decimal", "emoji") if one in content["short_authentication_string"]
            ],
            "commitment": unpadded(commitment),
        }
        await self._send(begun, "accept", accepted)

    async def _key(self, begun: _Open, content: Json) -> None:
        their_key = content["key"]
        if not begun.own_key or begun.their_key not in (None, their_key):
            raise _Cancelled("m.unexpected_message", "no key was expected")
        if begun.established is None:
            begun.established = begun.sas.diffie_hellman(vodozemac.Curve25519PublicKey.from_base64(their_key))
            begun.their_key = their_key
        await self._send(begun, "key", {"key": begun.own_key})
        machine, device = self._machine, begun.device
        shown = begun.established.bytes(
            f"MATRIX_KEY_VERIFICATION_SAS|{device.user_id}|{device.id}|{their_key}|"
            f"{machine.user_id}|{machine.device_id}|{begun.own_key}|{begun.transaction_id}"
        )
        emoji = [NioSas.emoji[index] for index in shown.emoji_indices]
        log.warning(
            "verification_compare",
            user=device.user_id,
            device=device.id,
            emoji=" ".join(f"{symbol} {name}" for symbol, name in emoji),
            numbers="-".join(map(str, shown.decimals)),
            advice="confirm in your client only if it shows the same",
        )

    async def _mac(self, begun: _Open, content: Json) -> None:
        """They have compared and found the same: check that it is their device that says so, and answer in kind."""
        if begun.established is None:
            raise _Cancelled("m.unexpected_message", "no confirmation was expected")
        device, machine = begun.device, self._machine
        theirs = f"{device.user_id}{device.id}{machine.user_id}{machine.device_id}{begun.transaction_id}"
        macs, name = content["mac"], f"ed25519:{device.id}"
        key_ids = ",".join(sorted(macs))
        self._check(begun, key_ids, f"{theirs}KEY_IDS", content["keys"])
        self._check(begun, device.ed25519, theirs + name, macs[name])
        ours = f"{machine.user_id}{machine.device_id}{device.user_id}{device.id}{begun.transaction_id}"
        answer = {key_id: self._made(begun, key, ours + key_id) for key_id, key in self._vouched_for()}
        confirmed = {"mac": answer, "keys": self._made(begun, ",".join(sorted(answer)), f"{ours}KEY_IDS")}
        await self._send(begun, "mac", confirmed)
        await self._send(begun, "done", {})
        await machine.vault.run(machine.olm.verify_device, device)
        del self._open[begun.transaction_id]
        log.info("verification_done", user=device.user_id, device=device.id)

    def _vouched_for(self) -> Iterator[tuple[str, str]]:
        """The bot's own keys that the other side is to trust."""
        yield f"ed25519:{self._machine.device_id}", self._machine.own.identity[1]
        master_key = self._identity.master_key
        if master_key is not None:
            yield f"ed25519:{master_key}", master_key

    def _made(self, begun: _Open, text: str, info: str) -> str:
        assert begun.established is not None
        return begun.established.calculate_mac(text, f"MATRIX_KEY_VERIFICATION_MAC{info}")

    def _check(self, begun: _Open, text: str, info: str, mac: str) -> None:
        if self._made(begun, text, info) != mac:
            raise _Cancelled("m.key_mismatch", "the keys are not those that were confirmed")

    async def _send(self, begun: _Open, kind: str, content: Json) -> None:
        whole = {**content, "transaction_id": begun.transaction_id}
        await self._devices.send(f"m.key.verification.{kind}", {begun.device.user_id: {begun.device.id: whole}})

    async def _cancel(self, event: ToDevice, transaction_id: str, why: _Cancelled) -> None:
        begun = self._open.pop(transaction_id, None)
        log.warning("verification_declined", user=event.sender, reason=why.reason)
        device_id = begun.device.id if begun is not None else event.content.get("from_device")
        if isinstance(device_id, str):
            content = {"transaction_id": transaction_id, "code": why.code, "reason": why.reason}
            await self._devices.send("m.key.verification.cancel", {event.sender: {device_id: content}})
