"""Tells whether a key file holds what was written there: beside its tables stands a sum over the rows of each.

SQLite's own check finds pages that are no pages any more, but no value with a bit that has flipped: a device's key that
is another then, and never given a room's key again. Triggers keep the sums, in the transaction of each change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any, Final

from peewee import DatabaseError, SqliteDatabase  # type: ignore[import-untyped]

_SUMS: Final = "CREATE TABLE IF NOT EXISTS musher_sums (name TEXT PRIMARY KEY, sum INTEGER NOT NULL)"
_TABLES: Final = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT IN (SELECT name FROM musher_sums)"
_BYTES: Final = 8
"""Of a sum: SQLite's integers have no more."""
_OURS: Final = ("musher_sums", "sqlite_sequence")

Sql = Callable[..., list[tuple[Any, ...]]]


def watch(database: SqliteDatabase, sql: Sql) -> None:
    """See that nothing was altered since it was written, and keep the sums of all tables from now on.

    Raises peewee's `DatabaseError` where something was.
    """
    database.connection().create_function("with_row", -1, _with_row, deterministic=True)
    sql("PRAGMA recursive_triggers = ON")  # else what a REPLACE replaces would go uncounted
    with database.atomic():
        sql(_SUMS)
        for name, stored in sql("SELECT name, sum FROM musher_sums"):
            if _sum_of(sql, name) != stored:
                raise DatabaseError(f"rows of the table {name} were altered")
        for (name,) in sql(_TABLES):
            if name not in _OURS:
                _begin(sql, name)


def _begin(sql: Sql, name: str) -> None:
    for statement in _triggers(name, [column[1] for column in sql(f'PRAGMA table_info("{name}")')]):
        sql(statement)
    sql("INSERT INTO musher_sums VALUES (?, ?)", name, _sum_of(sql, name))


def _triggers(name: str, columns: list[str]) -> Iterator[str]:
    new, old = (", ".join(f'{row}."{column}"' for column in columns) for row in ("NEW", "OLD"))
    sums = {
        "INSERT": f"with_row(sum, {new})",
        "DELETE": f"with_row(sum, {old})",
        "UPDATE": f"with_row(with_row(sum, {old}), {new})",
    }
    for change, total in sums.items():
        yield (
            f'CREATE TRIGGER "musher_sum_{name}_{change}" AFTER {change} ON "{name}" '
            f"BEGIN UPDATE musher_sums SET sum = {total} WHERE name = '{name}'; END"
        )


def _sum_of(sql: Sql, name: str) -> int:
    return reduce(lambda total, row: _with_row(total, *row), sql(f'SELECT * FROM "{name}"'), 0)


def _with_row(total: int, *row: object) -> int:
    """The sum with one row more or, being an exclusive or, without one that was in it."""
    digest = hashlib.blake2b(repr(row).encode(), digest_size=_BYTES).digest()
    return total ^ int.from_bytes(digest, "big", signed=True)
