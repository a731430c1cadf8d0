"""The values that `bot.matrix` takes and gives: frozen, free of nio's types, parsed once from what the server sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

DELIVERY_ID_FIELD: Final = "dev.musher.delivery_id"
"""Where an outgoing event carries its delivery's id in its content, for when its transaction id is forgotten."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The account as it is configured: a password, or an access token with its device id."""

    homeserver: str
    user_id: str
    password: str | None = field(default=None, repr=False)
    access_token: str | None = field(default=None, repr=False)
    device_id: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """One login, to be stored by the caller and handed back at the next start: one device for life."""

    user_id: str
    device_id: str
    access_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class TriedLogin:
    """A login that works: on the bot's own device, or by password on one that is gone again."""

    device_id: str
    by_password: bool


@dataclass(frozen=True, slots=True)
class RoomMessage:
    """Something a person said in a room. `origin_ms` is the sender's server's clock, Unix milliseconds."""

    event_id: str
    room_id: str
    sender: str
    body: str
    origin_ms: int
    msgtype: str = "m.text"
    thread_root: str | None = None
    reply_to: str | None = None
    mentions_me: bool = False


@dataclass(frozen=True, slots=True)
class Edit:
    """The new text of the message `event_id`; true only if `sender` is also the message's sender."""

    event_id: str
    room_id: str
    sender: str
    body: str


@dataclass(frozen=True, slots=True)
class Redaction:
    """The message `event_id` was taken back by the user `by`."""

    event_id: str
    room_id: str
    by: str


@dataclass(frozen=True, slots=True)
class Invite:
    """`inviter` asks the bot into a room. `public` and `encrypted`: as far as the invitation shows it.

    `by_upgrade`: no invitation, but `inviter` has closed a room that the bot is in for this one.
    """

    room_id: str
    inviter: str
    public: bool = False
    encrypted: bool = False
    by_upgrade: bool = False


@dataclass(frozen=True, slots=True)
class Undecryptable:
    """A message whose key did not come in time; `event_id` is the first one of its sender's session."""

    room_id: str
    sender: str
    session_id: str
    event_id: str


@dataclass(frozen=True, slots=True)
class Upgrade:
    """The room `old` was replaced by `new`: each names the other, and the bot is in both."""

    old: str
    new: str


@dataclass(frozen=True, slots=True)
class SyncBatch:
    """What one sync brought. The messages of a room stand in its timeline's order.

    `next_batch` is to be stored together with the messages. `joined` are the joined rooms that this sync mentions: all
    of them in a process's first sync, afterwards those with news. `left` are the rooms that the bot is no longer in or
    no longer invited to. `undecryptable` are told once, until the step after has been asked with `next_batch`.
    `upgrades` are all that are known, each time. In the `broken` rooms something could not be read, nobody knows why.
    """

    next_batch: str
    messages: tuple[RoomMessage, ...] = ()
    edits: tuple[Edit, ...] = ()
    redactions: tuple[Redaction, ...] = ()
    invites: tuple[Invite, ...] = ()
    joined: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    undecryptable: tuple[Undecryptable, ...] = ()
    upgrades: tuple[Upgrade, ...] = ()
    broken: tuple[str, ...] = ()
