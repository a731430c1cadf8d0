"""The one row that says whose database this is, who writes in it, and how far it has come."""

from __future__ import annotations

import sqlite3
import uuid
from dataclasses import dataclass, field

from crdt.schema import checksum


@dataclass(frozen=True, slots=True)
class State:
    """The row. `database_id` names one line of history: what was restored from a backup begins another."""

    database_id: str
    sled_id: str
    writer_id: int
    commits: int
    identity: int = field(init=False, repr=False, compare=False)
    """The checksum of all that stays the same from commit to commit."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "identity", checksum(self.database_id, self.sled_id, self.writer_id))


def read_state(connection: sqlite3.Connection) -> State | None:
    """Read the row; `None` before it was first written.

    Raises:
        ValueError: it was altered.
    """
    row = connection.execute("SELECT database_id, sled_id, writer_id, commits, checksum FROM state").fetchone()
    if row is None:
        return None
    *fields, stored_checksum = row
    state = State(*fields)
    if stored_checksum != _checksum(state, state.commits):
        raise ValueError("the row of the database's own state was altered")
    return state


def write_state(connection: sqlite3.Connection, state: State) -> None:
    """Write the row, over what it was."""
    connection.execute(
        "INSERT OR REPLACE INTO state (id, database_id, sled_id, writer_id, commits, checksum) "
        "VALUES (1, ?, ?, ?, ?, ?)",
        (state.database_id, state.sled_id, state.writer_id, state.commits, _checksum(state, state.commits)),
    )


def count_commit(connection: sqlite3.Connection, state: State, commits: int) -> None:
    """Write the number of the commit that is about to be made into the row, which otherwise is `state`."""
    connection.execute("UPDATE state SET commits = ?, checksum = ?", (commits, _checksum(state, commits)))


def _checksum(state: State, commits: int) -> int:
    return checksum(commits, after=state.identity)


def new_state(sled_id: str | None = None, commits: int = 0) -> State:
    """Make an identity that no database has had; without a `sled_id` the sled is new as well."""
    return State(uuid.uuid4().hex, sled_id or f"sled-{uuid.uuid4().hex[:8]}", new_writer_id(), commits)


def new_writer_id() -> int:
    """A CRDT client id that no replica has used: 32 random bits, which encode in five bytes."""
    return uuid.uuid4().int & 0xFFFFFFFF
