"""What a copy from an earlier time gives up before it goes on: a backup that is restored, a file that was swapped in.

The world outside has gone on since the copy was made. Messages that the copy holds as waiting may have been answered,
its unsent deliveries may have been sent, and its ids may have been used for ops that the copy has lost. So:
- it gets a new writer id (replicas that know an id diverge for ever when it is used again) and a new database id;
- waiting messages are settled and open turns ended, unanswered; messages that wait as context stay;
- unsent deliveries count as attempted long ago, so each is first looked for in its room;
- the sync token goes, and the time is noted: what was said before it is history, to be read and not answered.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace

import structlog

from crdt import inbox, outbox, settings, transcript, turns
from crdt.documents import build_document, insert_ops, read_document
from crdt.model import TranscriptEntry
from crdt.session_rows import read_session_row, write_session_row
from crdt.state import State, new_state, write_state

log = structlog.get_logger(__name__)

RESTORED = "restored from a backup"
"""The outcome of messages that were waiting."""
NO_REPLY = "(This was not answered: the database was restored from a backup.)"
"""Stands in the transcript where an open turn would have had its reply, since roles alternate."""


def begin_anew(connection: sqlite3.Connection, state: State) -> State:
    """Make a copy ready to go on, inside a transaction of the caller's; returns its new identity.

    Raises:
        ValueError: a row that is needed was altered or is missing.
    """
    anew = replace(new_state(state.sled_id), commits=state.commits + 1)
    write_state(connection, anew)
    messages = inbox.settle_triggers(connection, RESTORED)
    still_open = turns.still_open(connection)
    for session_id, key in still_open:
        _end_turn(connection, anew.writer_id, session_id, key)
    deliveries = outbox.doubt(connection)
    settings.forget(connection, settings.CURSOR, settings.BACKUP_MADE_AT_MS)
    settings.write(connection, {settings.RESTORED_AT_MS: str(time.time_ns() // 1_000_000)})
    log.warning("database_begins_anew", messages=messages, turns=len(still_open), deliveries=deliveries)
    return anew


def _end_turn(connection: sqlite3.Connection, writer_id: int, session_id: str, key: str) -> None:
    row = read_session_row(connection, session_id)
    name = transcript.document_name(session_id, row.part if row else 1)
    stored = read_document(connection, name)
    if row is None or stored is None:
        raise ValueError(f"document {name} of an open turn is missing")
    document = build_document(name, writer_id, stored)
    entry = transcript.encode_entry(TranscriptEntry("assistant", key, NO_REPLY, failed=True))
    insert_ops(connection, writer_id, [document.change(lambda: document.extend("transcript", [entry]))])
    write_session_row(connection, session_id, replace(row, turns=row.turns + 1))
    turns.settle(connection, session_id, key, "failed")
