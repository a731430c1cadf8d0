"""Messages that can't be read yet, kept until their key comes.

A message stands here, still encrypted, before the sync token goes past it. It leaves when the message has been read and
the token of the sync that gave it out was stored; until then it may be given out again, which the inbox passes over.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Final

import structlog

from bot.matrix.e2ee.machine import Machine, Unreadable
from bot.matrix.e2ee.model import Encrypted
from bot.matrix.e2ee.vault import Vault
from bot.matrix.model import Undecryptable

log = structlog.get_logger(__name__)

MOST: Final = 1_000
"""Messages that wait, of all rooms together; the oldest go first."""
LONGEST_MS: Final = 7 * 24 * 3_600_000
"""How long a key may take to come."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Pending:
    """What waits for keys. Every method is to be run on the vault's thread.

    `given_out` tells whether there is anything for `forget_emitted` to forget.
    """

    def __init__(
        self,
        vault: Vault,
        parse: Callable[[str, object], Encrypted | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._vault = vault
        self._parse = parse
        self._clock = clock
        self._waiting_since: dict[tuple[str, ...], float] = {}
        """By session: when this process first saw it wait. The wall clock may step, and would tell people too soon."""
        self.given_out = False

    def add(self, event: Encrypted) -> bool:
        """Keep an event; returns whether its key has not been asked for yet."""
        with self._vault.atomic():
            self._vault.sql(
                "INSERT OR IGNORE INTO musher_pending (event_id, room_id, sender, session_id, event, since_ms) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                event.event_id,
                event.room_id,
                event.sender,
                event.session_id,
                json.dumps(event.source),
                now_ms(),
            )
            self._vault.sql(
                "DELETE FROM musher_pending WHERE since_ms < ? OR rowid IN "
                "(SELECT rowid FROM musher_pending ORDER BY rowid DESC LIMIT -1 OFFSET ?)",
                now_ms() - LONGEST_MS,
                MOST,
            )
            asked = self._vault.sql(
                "SELECT 1 FROM musher_pending WHERE room_id = ? AND session_id = ? AND asked_ms IS NOT NULL",
                event.room_id,
                event.session_id,
            )
        return not asked

    def asked(self, event: Encrypted) -> None:
        """The event's key has been asked for."""
        self._vault.sql(
            "UPDATE musher_pending SET asked_ms = ? WHERE room_id = ? AND session_id = ?",
            now_ms(),
            event.room_id,
            event.session_id,
        )

    def readable(self, machine: Machine) -> list[tuple[str, dict[str, object]]]:
        """What can be read by now, oldest first, decrypted: room id and event. It stays until `forget_emitted`."""
        found = []
        rows = self._vault.sql("SELECT event_id, room_id, event FROM musher_pending ORDER BY rowid")
        for event_id, room_id, source in rows:
            event = self._parse(room_id, json.loads(source))
            try:
                if event is None or not machine.has_key(event):
                    continue
                found.append((room_id, machine.read(event)))
            except Unreadable as error:
                if error.waits:
                    continue
                log.warning("message_given_up", session=room_id, message=event_id, problem=error.problem)
            self._vault.sql("UPDATE musher_pending SET emitted = 1 WHERE event_id = ?", event_id)
            self.given_out = True
        return found

    def drop(self, event_id: str) -> None:
        """The message was taken back."""
        self._vault.sql("DELETE FROM musher_pending WHERE event_id = ?", event_id)

    def forget_emitted(self) -> None:
        """What was given out is in the inbox."""
        self._vault.sql("DELETE FROM musher_pending WHERE emitted = 1")
        self.given_out = False

    def overdue(self, after_s: float) -> list[Undecryptable]:
        """The first message of each session that has waited too long, under this start, and was not told of yet."""
        rows = self._vault.sql(
            "SELECT room_id, sender, session_id, event_id, MIN(rowid) AS place FROM musher_pending AS waiting "
            "WHERE emitted = 0 AND NOT EXISTS (SELECT 1 FROM musher_noticed AS told WHERE "
            "told.room_id = waiting.room_id AND told.sender = waiting.sender AND told.session_id = waiting.session_id) "
            "GROUP BY room_id, sender, session_id ORDER BY place"
        )
        now = self._clock()
        self._waiting_since = {row[:3]: self._waiting_since.get(row[:3], now) for row in rows}
        return [Undecryptable(*row[:4]) for row in rows if now - self._waiting_since[row[:3]] >= after_s]

    def noticed(self, told: Undecryptable) -> None:
        """The people in the room have been told."""
        self._vault.sql(
            "INSERT OR IGNORE INTO musher_noticed VALUES (?, ?, ?)", told.room_id, told.sender, told.session_id
        )

    def count(self) -> int:
        """How many wait."""
        return int(self._vault.sql("SELECT COUNT(*) FROM musher_pending WHERE emitted = 0")[0][0])
