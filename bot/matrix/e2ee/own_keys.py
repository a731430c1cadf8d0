"""The keys of the bot's own device: what others see of them, and what the homeserver has to begin sessions with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from nio.crypto.olm_machine import Olm  # type: ignore[import-untyped]

from bot.matrix.e2ee.json_signing import Json
from bot.matrix.e2ee.model import KeysLeft

OLM: Final = "m.olm.v1.curve25519-aes-sha2"
MEGOLM: Final = "m.megolm.v1.aes-sha2"


class OwnKeys:
    """The account of one device. Every method is to be run on the vault's thread."""

    def __init__(self, olm: Olm) -> None:
        self._olm = olm

    @property
    def identity(self) -> tuple[str, str]:
        """The device's own public keys: curve25519 and ed25519."""
        keys = self._olm.account.identity_keys
        return keys["curve25519"], keys["ed25519"]

    @property
    def published(self) -> bool:
        """Whether the server knows this device's keys."""
        return bool(self._olm.account.shared)

    def keys_to_upload(self, left: KeysLeft | None, low: int) -> Json | None:
        """The body of a key upload, or `None` when nothing is needed. Saved before it is sent: see `devices`."""
        account = self._olm.account
        if left is not None:
            self._make_keys(left, low)
        body: Json = {
            "one_time_keys": dict(self._signed_keys(account.one_time_keys["curve25519"])),
            "fallback_keys": dict(self._signed_keys(self._fallback_key(), fallback=True)),
        }
        if any(body.values()):  # also those made before: the file may have been full then
            self._olm.save_account()
        if not account.shared:
            body["device_keys"] = self.device_keys()
        return {name: keys for name, keys in body.items() if keys} or None

    def _make_keys(self, left: KeysLeft, low: int) -> None:
        account = self._olm.account
        if left.one_time < low and not account.one_time_keys["curve25519"]:
            account.generate_one_time_keys(max(account.max_one_time_keys - left.one_time, 1))
        if not left.fallback and not self._fallback_key():
            account._account.generate_fallback_key()

    def _fallback_key(self) -> dict[str, str]:
        """The fallback key that the server does not have yet; nio's account does not show it."""
        return {key_id: key.to_base64() for key_id, key in self._olm.account._account.fallback_key.items()}

    def uploaded(self) -> None:
        """The server has taken what `keys_to_upload` gave."""
        self._olm.account.shared = True
        self._olm.mark_keys_as_published()
        self._olm.save_account()

    def forget_upload(self) -> None:
        """The server does not know this device's keys (any more)."""
        self._olm.account.shared = False

    def device_keys(self) -> Json:
        """What others see of this device, signed by itself."""
        curve25519, ed25519 = self.identity
        keys: Json = {
            "algorithms": [OLM, MEGOLM],
            "device_id": self._olm.device_id,
            "user_id": self._olm.user_id,
            "keys": {f"curve25519:{self._olm.device_id}": curve25519, f"ed25519:{self._olm.device_id}": ed25519},
        }
        return keys | {"signatures": self._signatures(keys)}

    def _signed_keys(self, keys: dict[str, str], **marks: bool) -> Iterator[tuple[str, Json]]:
        for key_id, key in keys.items():
            signed = {"key": key, **marks}
            yield f"signed_curve25519:{key_id}", signed | {"signatures": self._signatures(signed)}

    def _signatures(self, value: Json) -> Json:
        return {self._olm.user_id: {f"ed25519:{self._olm.device_id}": self.sign(value)}}

    def sign(self, value: Json) -> str:
        """Sign with the device's own key."""
        signature: str = self._olm.sign_json(value)
        return signature
