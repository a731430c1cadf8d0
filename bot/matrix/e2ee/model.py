"""The values of the encryption, and what it needs of its surroundings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class Settings(Protocol):
    """Small durable facts beside the keys: what must outlive the loss of the keys."""

    async def read_setting(self, name: str) -> str | None: ...
    async def write_settings(self, values: Mapping[str, str]) -> None: ...


def _everybody(_user_id: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class EncryptionSettings:
    """What the operator decides.

    `beside` is the database next to which the key files stand. Without a `pickle_key` one is made and kept there.
    `allows` tells whose messages matter: others' are not kept, and their keys not asked for.
    """

    beside: Path
    pickle_key: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    admins: frozenset[str] = frozenset()
    allows: Callable[[str], bool] = _everybody
    notice_after_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Counts:
    """Since the start, but for `waiting`: what waits for its key now."""

    waiting: int
    decrypted: int
    encrypted: int
    noticed: int


@dataclass(frozen=True, slots=True)
class SeenKeys:
    """What the homeserver shows others of the bot. Keys are public ones; `None`: there is none."""

    user_id: str
    device_id: str
    device_key: str | None
    master_key: str | None
    identity_is_whole: bool
    device_is_signed: bool

    @property
    def trusted(self) -> bool:
        """Whether clients that accept only cross-signed devices accept this one."""
        return self.identity_is_whole and self.device_is_signed


@dataclass(frozen=True, slots=True)
class KeysLeft:
    """What the server still has of this device's keys to begin sessions with.

    `one_time` counts those that are given out once each; `fallback`: whether the one that is given out when there are
    no others has not been yet.
    """

    one_time: int
    fallback: bool


@dataclass(frozen=True, slots=True)
class ToDevice:
    """A message from one device to another, as a sync brings it."""

    kind: str
    sender: str
    content: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Encrypted:
    """A Megolm event of a room, its fields checked."""

    event_id: str
    room_id: str
    sender: str
    session_id: str
    ciphertext: str
    origin_ms: int
    source: dict[str, Any]
    sender_key: str | None = None
    device_id: str | None = None
