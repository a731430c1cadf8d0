"""Puts in the secrets that stand in files of their own: `<key>_file` in place of `<key>`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bot.config.problems import Place, write_key
from bot.config.schema import FILE_SUFFIX, is_list, is_named_tables, is_secret, table_of
from bot.reading import read_whole

_PLACEHOLDER: Final = "unreadable"
"""Stands in for a secret whose file could not be read, so that the one mistake isn't told a second time as a
missing key. A configuration with a problem is never used."""


def _tables_in(field: FieldInfo, value: Any, place: Place) -> Iterator[tuple[Any, Place]]:
    if is_list(field) and isinstance(value, list):
        yield from ((item, (*place, i)) for i, item in enumerate(value))
    elif is_named_tables(field) and isinstance(value, dict):
        yield from ((item, (*place, name)) for name, item in value.items())
    else:
        yield value, place


def _read(path: object, folder: Path) -> str:
    """Read a file; raises `ValueError` with what is wrong with it."""
    if not isinstance(path, str) or not path:
        raise ValueError("is not a path")
    try:
        text = read_whole(folder / Path(path).expanduser()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8 text") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: "~name" of nobody
        raise ValueError(f"can't be read ({getattr(error, 'strerror', None) or error})") from error
    if not text.strip():
        raise ValueError("is an empty file")
    return text


def _put_in(table: dict[str, Any], name: str, field: FieldInfo, folder: Path, place: Place) -> Iterator[str]:
    path = table.pop(name + FILE_SUFFIX)
    if name in table:
        yield (
            f"{write_key((*place, name))}: is given as {name} and as {name}{FILE_SUFFIX}; "
            f"allowed: one of the two, in the file and the environment together"
        )
        return
    try:
        text = _read(path, folder)
    except ValueError as error:
        allowed = "a file with one secret on each line" if is_list(field) else "a file that holds the secret"
        shown = f' = "{path}"' if isinstance(path, str) else ""
        yield f"{write_key((*place, name + FILE_SUFFIX))}{shown}: {error}; allowed: {allowed}"
        text = _PLACEHOLDER
    lines = [line.strip() for line in text.splitlines()]
    table[name] = [line for line in lines if line] if is_list(field) else text.rstrip("\r\n")


def put_in_secrets(model: type[BaseModel], table: Any, folder: Path, place: Place = ()) -> Iterator[str]:
    """Replace each `<secret>_file` in a table, at any depth, by what the file holds; yields the problems.

    Relative paths are taken from `folder`. Tables of a wrong shape are left for the sections to refuse.
    """
    if not isinstance(table, dict):
        return
    for name, field in model.model_fields.items():
        if is_secret(field) and name + FILE_SUFFIX in table:
            yield from _put_in(table, name, field, folder, place)
        inner = table_of(field)
        if inner is not None and name in table:
            for below, at in _tables_in(field, table[name], (*place, name)):
                yield from put_in_secrets(inner, below, folder, at)
