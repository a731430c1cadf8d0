"""The bot's only door to Matrix: no other package imports nio or speaks HTTP with the homeserver.

`client.MatrixClient` logs in, syncs and sends, also in encrypted rooms (`e2ee`); `model` holds the values it gives,
`errors` what can go wrong. Within, `wire` makes requests, `second_asks` makes overdue ones again, `sync` reads what is
new, `backfill` fetches what a sync left out, `timeline` reads events, `rooms` remembers rooms, `room_rules` finds out
how they are encrypted, `send` acts in them. `render` and `split` turn a reply in Markdown into events' contents.
"""

from bot.matrix.client import MatrixClient
from bot.matrix.e2ee import Counts, EncryptionSettings, SeenKeys
from bot.matrix.errors import (
    EncryptedRoom,
    Forbidden,
    KeysDamaged,
    KeysLost,
    KeysUnavailable,
    LoggedOut,
    LoginRefused,
    MatrixError,
    NotAHomeserver,
    NotInRoom,
    PickleKeyWrong,
    RateLimited,
    Refused,
    RoomReplaced,
    UnknownEncryption,
    Unreachable,
)
from bot.matrix.model import (
    DELIVERY_ID_FIELD,
    Credentials,
    Edit,
    Identity,
    Invite,
    Redaction,
    RoomMessage,
    SyncBatch,
    Undecryptable,
    Upgrade,
)
from bot.matrix.split import reply_contents

__all__ = [
    "DELIVERY_ID_FIELD",
    "Counts",
    "Credentials",
    "Edit",
    "EncryptedRoom",
    "EncryptionSettings",
    "Forbidden",
    "Identity",
    "Invite",
    "KeysDamaged",
    "KeysLost",
    "KeysUnavailable",
    "LoggedOut",
    "LoginRefused",
    "MatrixClient",
    "MatrixError",
    "NotAHomeserver",
    "NotInRoom",
    "PickleKeyWrong",
    "RateLimited",
    "Redaction",
    "Refused",
    "RoomMessage",
    "RoomReplaced",
    "SeenKeys",
    "SyncBatch",
    "Undecryptable",
    "UnknownEncryption",
    "Unreachable",
    "Upgrade",
    "reply_contents",
]
