"""What the bot tells a room by itself, outside of a turn."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from bot.matrix import DELIVERY_ID_FIELD
from crdt import Delivery

Kind = Literal["unreadable", "damaged", "broken"]


def notice(room_id: str, text: str, kind: Kind, about: str = "", *, reply_to: str | None = None) -> Delivery:
    """Tell a room something. However often it is told `about` the same, outbox and homeserver keep it once."""
    delivery_id = f"musher-{kind}-{hashlib.sha256(f'{room_id} {about}'.encode()).hexdigest()[:32]}"
    content: dict[str, object] = {"msgtype": "m.notice", "body": text, "m.mentions": {}, DELIVERY_ID_FIELD: delivery_id}
    if reply_to is not None:
        content["m.relates_to"] = {"m.in_reply_to": {"event_id": reply_to}}
    return Delivery(delivery_id, room_id, json.dumps(content))
