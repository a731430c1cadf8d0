"""Pure: canonical JSON, and ed25519 over it (Matrix specification, appendices, "Signing JSON")."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import vodozemac
from Crypto.PublicKey import ECC
from Crypto.Signature import eddsa

Json = dict[str, Any]


def canonical(value: object) -> bytes:
    """The one way in which a JSON value is written for signing."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def unpadded(raw: bytes) -> str:
    """Base64 without padding, as Matrix writes keys."""
    return base64.b64encode(raw).decode().rstrip("=")


def public_key(seed: bytes) -> str:
    """The public half of an ed25519 key."""
    return unpadded(_key(seed).public_key().export_key(format="raw"))


def sign(seed: bytes, value: Mapping[str, Any]) -> str:
    """Sign an object, but for its signatures."""
    return unpadded(eddsa.new(_key(seed), "rfc8032").sign(canonical(_signed_part(value))))


def is_signed(value: Mapping[str, Any], user_id: str, key_id: str, key: str) -> bool:
    """Whether the object carries a valid signature of this user's key; `key_id` is like `ed25519:DEVICE`."""
    signatures = value.get("signatures")
    of_user = signatures.get(user_id) if isinstance(signatures, dict) else None
    signature = of_user.get(key_id) if isinstance(of_user, dict) else None
    if not isinstance(signature, str):
        return False
    try:
        vodozemac.Ed25519PublicKey.from_base64(key).verify_signature(
            canonical(_signed_part(value)), vodozemac.Ed25519Signature.from_base64(signature)
        )
    except (ValueError, RecursionError):  # all errors of vodozemac; what is nested too deep to be written down
        return False
    return True


def _signed_part(value: Mapping[str, Any]) -> Json:
    return {key: part for key, part in value.items() if key not in ("signatures", "unsigned")}


def _key(seed: bytes) -> ECC.EccKey:
    return ECC.construct(curve="Ed25519", seed=seed)
