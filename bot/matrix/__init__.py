"""The bot's only door to Matrix: no other package imports nio or speaks HTTP with the homeserver.

`client.MatrixClient` logs in, syncs and sends; `model` holds the values it gives, `errors` what can go wrong. Within,
`wire` makes requests, `sync` reads what is new, `backfill` fetches what a sync left out, `timeline` reads events,
`rooms` remembers rooms, `send` acts in them. `render` and `split` turn a reply in Markdown into events' contents.
"""

from bot.matrix.client import MatrixClient
from bot.matrix.errors import (
    EncryptedRoom,
    Forbidden,
    LoggedOut,
    LoginRefused,
    MatrixError,
    NotAHomeserver,
    NotInRoom,
    RateLimited,
    Refused,
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
)
from bot.matrix.split import reply_contents

__all__ = [
    "DELIVERY_ID_FIELD",
    "Credentials",
    "Edit",
    "EncryptedRoom",
    "Forbidden",
    "Identity",
    "Invite",
    "LoggedOut",
    "LoginRefused",
    "MatrixClient",
    "MatrixError",
    "NotAHomeserver",
    "NotInRoom",
    "RateLimited",
    "Redaction",
    "Refused",
    "RoomMessage",
    "SyncBatch",
    "Unreachable",
    "reply_contents",
]
