"""The bot's cross-signing identity: three keys that vouch for its device, so that people's clients trust it.

Client-server API, "Cross-signing". The identity outlives devices: its seeds stand in the database, encrypted with a key
derived from the pickle key, and go into backups; a new device is signed with them, and nobody sees a change.
"""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from typing import Any, Final

import structlog
from Crypto.Cipher import AES
from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF

from bot.matrix.e2ee.json_signing import Json, is_signed, public_key, sign
from bot.matrix.e2ee.machine import Machine
from bot.matrix.e2ee.model import SeenKeys, Settings
from bot.matrix.errors import PasswordAsked, Refused
from bot.matrix.second_asks import USUAL
from bot.matrix.values import as_object
from bot.matrix.wire import CLIENT_API, Wire

log = structlog.get_logger(__name__)

SEEDS: Final = "matrix_cross_signing_seeds"
"""The setting that keeps the seeds: nonce, tag and AES-256-GCM of the three, base64."""
_USAGES: Final = ("master", "self_signing", "user_signing")
_SEED_BYTES: Final = 32
_NONCE_BYTES: Final = 16
_TAG_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Seeds:
    """The three private keys."""

    master: bytes
    self_signing: bytes
    user_signing: bytes

    @classmethod
    def make(cls) -> Seeds:
        return cls(*(secrets.token_bytes(_SEED_BYTES) for _ in _USAGES))

    def public(self, user_id: str) -> dict[str, Json]:
        """The three public keys as they are uploaded; the master key signs the other two."""
        keys: dict[str, Json] = {}
        for usage in _USAGES:
            key = public_key(getattr(self, usage))
            entry: Json = {"user_id": user_id, "usage": [usage], "keys": {f"ed25519:{key}": key}}
            if usage != "master":
                name = f"ed25519:{public_key(self.master)}"
                entry["signatures"] = {user_id: {name: sign(self.master, entry)}}
            keys[f"{usage}_key"] = entry
        return keys

    def seal(self, pickle_key: str, user_id: str) -> str:
        """Encrypt them for the database."""
        cipher = _cipher(pickle_key, user_id, nonce := secrets.token_bytes(_NONCE_BYTES))
        sealed, tag = cipher.encrypt_and_digest(self.master + self.self_signing + self.user_signing)
        return base64.b64encode(nonce + tag + sealed).decode()

    @classmethod
    def unseal(cls, sealed: str, pickle_key: str, user_id: str) -> Seeds:
        """Decrypt them. Raises `ValueError` if the pickle key is another, or the text was altered."""
        raw = base64.b64decode(sealed, validate=True)
        nonce, tag, body = raw[:_NONCE_BYTES], raw[_NONCE_BYTES:][:_TAG_BYTES], raw[_NONCE_BYTES + _TAG_BYTES :]
        opened: bytes = _cipher(pickle_key, user_id, nonce).decrypt_and_verify(body, tag)
        return cls(*(opened[start : start + _SEED_BYTES] for start in range(0, len(opened), _SEED_BYTES)))


def _cipher(pickle_key: str, user_id: str, nonce: bytes) -> Any:
    key = HKDF(pickle_key.encode(), 32, b"", SHA256, context=b"musher cross-signing seeds")
    cipher = AES.new(key, AES.MODE_GCM, nonce=nonce)
    return cipher.update(user_id.encode())


class Identity:
    """Makes the identity at the first start, and sees at each that the server has it and that it vouches for us."""

    def __init__(self, wire: Wire, settings: Settings, machine: Machine, password: str | None) -> None:
        self._wire = wire
        self._settings = settings
        self._machine = machine
        self._password = password
        self._user_id = machine.user_id
        self.master_key: str | None = None

    async def establish(self, at_server: Json) -> None:
        """Bring the server to where others trust this device. `at_server`: its answer to a query of our own keys."""
        shown = own_identity(at_server, self._user_id)
        seeds = await self._load()
        stands = seeds is not None and self._is(shown, seeds)
        # Synapse answers 500 to keys that it had before: one that was replaced can't come back.
        if seeds is None or (shown["master_key"] and not stands):
            seeds = await self._make()
        if not stands:
            if not await self._upload(seeds.public(self._user_id)):
                return
            if shown["master_key"]:
                log.warning("identity_replaced", user=self._user_id, advice="people who had verified it are told so")
        self.master_key = public_key(seeds.master)
        device = _device(at_server, self._user_id, self._machine.device_id)
        key = public_key(seeds.self_signing)
        if device is None or not is_signed(device, self._user_id, f"ed25519:{key}", key):
            await self._sign_device(seeds)

    def _is(self, shown: dict[str, Any], seeds: Seeds) -> bool:
        return all(_key(shown[name]) == _key(entry) for name, entry in seeds.public(self._user_id).items())

    async def _load(self) -> Seeds | None:
        sealed = await self._settings.read_setting(SEEDS)
        if sealed is None:
            return None
        try:
            return Seeds.unseal(sealed, await self._pickle_key(), self._user_id)
        except ValueError:
            log.error(
                "identity_unreadable",
                user=self._user_id,
                advice="the pickle key is not the one that it was kept with; a new identity is made",
            )
            return None

    async def _make(self) -> Seeds:
        """Make the seeds, and keep them before anybody sees their public halves."""
        seeds = Seeds.make()
        sealed = seeds.seal(await self._pickle_key(), self._user_id)
        await self._settings.write_settings({SEEDS: sealed})
        log.info("identity_made", user=self._user_id)
        return seeds

    async def _pickle_key(self) -> str:
        return await self._machine.vault.run(self._machine.vault.pickle_key)

    async def _upload(self, public: dict[str, Json]) -> bool:
        """Upload the keys, by password if the server asks; `False`, and told, when it can't be done."""
        path = f"{CLIENT_API}/keys/device_signing/upload"
        try:
            try:
                await self._wire.request("POST", path, body=public, patience=USUAL)
            except PasswordAsked as asked:
                if self._password is None:
                    raise
                await self._wire.request("POST", path, body=public | {"auth": self._auth(asked)})
        except (PasswordAsked, Refused) as error:
            log.error("identity_not_uploaded", user=self._user_id, reason=str(error))
            return False
        log.info("identity_uploaded", user=self._user_id)
        return True

    def _auth(self, asked: PasswordAsked) -> Json:
        return {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self._user_id},
            "password": self._password,
            "session": asked.session,
        }

    async def _sign_device(self, seeds: Seeds) -> None:
        """Sign the device with the identity, and the identity with the device (some clients look for that too)."""
        device_id = self._machine.device_id
        device = await self._machine.vault.run(self._machine.own.device_keys)
        name = f"ed25519:{public_key(seeds.self_signing)}"
        device["signatures"][self._user_id][name] = sign(seeds.self_signing, device)
        master = seeds.public(self._user_id)["master_key"]
        by_device = await self._machine.vault.run(self._machine.own.sign, dict(master))
        master["signatures"] = {self._user_id: {f"ed25519:{device_id}": by_device}}
        body = {self._user_id: {device_id: device, public_key(seeds.master): master}}
        answer = await self._wire.post("keys", "signatures", "upload", body=body, patience=USUAL)
        if answer.get("failures"):
            log.error("device_not_signed", device=device_id, reason=str(answer["failures"]))
        else:
            log.info("device_signed", device=device_id)


def judge(at_server: Json, user_id: str, device_id: str) -> SeenKeys:
    """Tell what others make of the keys in the answer to a key query, which must be the user's own."""
    shown = own_identity(at_server, user_id)
    master, self_signing = _key(shown["master_key"]), _key(shown["self_signing_key"])
    device = _device(at_server, user_id, device_id)
    return SeenKeys(
        user_id=user_id,
        device_id=device_id,
        device_key=_text(as_object(as_object(device).get("keys")).get(f"ed25519:{device_id}")),
        master_key=master,
        identity_is_whole=master is not None
        and all(
            isinstance(shown[name], dict) and is_signed(shown[name], user_id, f"ed25519:{master}", master)
            for name in ("self_signing_key", "user_signing_key")
        ),
        device_is_signed=device is not None
        and self_signing is not None
        and is_signed(device, user_id, f"ed25519:{self_signing}", self_signing),
    )


def own_identity(at_server: Json, user_id: str) -> dict[str, Any]:
    """The public identity of a user in the answer to a key query, under the names of an upload."""
    return {f"{usage}_key": as_object(at_server.get(f"{usage}_keys")).get(user_id) for usage in _USAGES}


def _device(at_server: Json, user_id: str, device_id: str) -> Json | None:
    device = as_object(as_object(at_server.get("device_keys")).get(user_id)).get(device_id)
    return device if isinstance(device, dict) else None


def _key(entry: object) -> str | None:
    return _text(next(iter(as_object(as_object(entry).get("keys")).values()), None))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
