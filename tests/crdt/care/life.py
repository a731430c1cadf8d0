"""A life for a database that is to be cared for, and all that it holds afterwards."""

from __future__ import annotations

import stat
from pathlib import Path

from crdt import Store, StoreReader
from crdt.settings import BACKUP_MADE_AT_MS
from tests.crdt.samples import OTHER_ROOM, ROOM, delivery, event, events, look, message


async def live(store: Store) -> None:
    """A life with something in every table, and with work that is open."""
    await store.append_events(events(1, 16))
    await store.housekeep()
    await store.append_event(event(17))
    await store.write_settings({"device": "ABC"})
    for number, room in enumerate((ROOM, OTHER_ROOM, ROOM)):
        key = f"$answered{number}"
        await store.admit([message(key, session_id=room)], cursor=f"s{number}")
        turn = await store.begin_turn(room, key, "hello")
        await store.complete_turn(turn, "hi", [delivery(f"d{number}", room)])
    await store.delivery_sent("d0", "$sent")
    await store.roll_session(OTHER_ROOM, 1)
    await store.admit([message("$open"), message("$waiting"), message("$context", context=True)], cursor="s9")
    await store.begin_turn(ROOM, "$open", "and now?")


async def contents(path: Path) -> dict[str, object]:
    """All that a database tells, through its documents where it has some."""
    tables = {
        "inbox": "SELECT key, session_id, sender, text, is_context, details, turn_key, outcome FROM inbox",
        "outbox": "SELECT delivery_id, session_id, event_type, content, attempts, outcome, event_id FROM outbox",
        "turns": "SELECT * FROM turns",
        "settings": f"SELECT * FROM settings WHERE name != '{BACKUP_MADE_AT_MS}'",
        "dedupe": "SELECT * FROM dedupe",
    }
    async with StoreReader.open(path) as reader:
        sessions = await reader.list_sessions()
        return {
            "log": await reader.read_events(limit=100_000),
            "sessions": sessions,
            "transcripts": [await reader.read_transcript(each.session_id) for each in sessions],
            **{table: look(path, query) for table, query in tables.items()},
        }


def files(folder: Path) -> dict[str, bytes]:
    """What stands in a folder, but for what a reader leaves behind."""
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file() and each.suffix != ".db-shm"}


def mode(file: Path) -> int:
    """Who may do what with a file."""
    return stat.S_IMODE(file.stat().st_mode)
