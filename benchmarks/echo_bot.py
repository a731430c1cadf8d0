"""A bare echo bot, as nio's own examples have it: what row 6 stands beside.

`python -m benchmarks.echo_bot URL USER PASSWORD FOLDER`
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from nio import (  # type: ignore[import-untyped]
    AsyncClient,
    AsyncClientConfig,
    InviteMemberEvent,
    RoomMessageText,
)


async def run(url: str, user_id: str, password: str, folder: str) -> None:
    """Answer every text with the same text."""
    config = AsyncClientConfig(encryption_enabled=True, store_sync_tokens=True)
    client = AsyncClient(url, user_id, store_path=folder, config=config)

    async def invited(room: Any, _event: InviteMemberEvent) -> None:
        await client.join(room.room_id)

    async def said(room: Any, event: RoomMessageText) -> None:
        if event.sender != client.user_id:
            content = {"msgtype": "m.text", "body": event.body}
            await client.room_send(room.room_id, "m.room.message", content, ignore_unverified_devices=True)

    client.add_event_callback(invited, InviteMemberEvent)
    client.add_event_callback(said, RoomMessageText)
    await client.login(password)
    await client.sync_forever(timeout=30_000, full_state=True)


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:5]))
