"""Reads the keys that the environment sets: `MUSHER_<SECTION>__<KEY>`.

Lists are JSON arrays or comma-separated; tables and lists of tables are JSON (`MUSHER_ROOMS={"!room": {…}}`). An
empty variable counts as not set, since container tools pass such ones on. Names that start with `MUSHER_PAUSE` or
`MUSHER_DEMO` are not configuration, nor are `MUSHER_URL` and `MUSHER_TOKEN`, which `musher event` reads, nor what
Kubernetes tells of a Service that is called musher.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bot.config.problems import Place, unknown_key
from bot.config.schema import is_list, is_named_tables, secret_behind, table_of

PREFIX: Final = "MUSHER_"
_NOT_CONFIGURATION: Final = ("MUSHER_PAUSE", "MUSHER_DEMO")
_OF_A_COMMAND: Final = frozenset({"MUSHER_URL", "MUSHER_TOKEN"})
_SEPARATOR: Final = "__"
# kubernetes.io, "Service", "Environment variables". One more, MUSHER_PORT, is told by its value: it is a URL.
_OF_KUBERNETES: Final = re.compile(
    r"MUSHER(_[A-Z0-9]+)*_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_[A-Z]+(_(PROTO|PORT|ADDR))?)"
)


@dataclass(slots=True)
class Environment:
    """What the environment says: values shaped like the TOML file's, and which variable set which place."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Place, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class _NotReadable(Exception):
    """A variable's name or text can't be understood."""


def _resolve(model: type[BaseModel], parts: list[str]) -> tuple[list[str], FieldInfo | None]:
    """Follow a variable's name into the sections; the field is `None` where the name ends in a secret's file."""
    place: list[str] = []
    while True:
        key = parts.pop(0).lower()
        place.append(key)
        if not parts and secret_behind(model, key):
            return place, None
        found = model.model_fields.get(key)
        if found is None:
            raise _NotReadable(unknown_key(key, model))
        if not parts:
            return place, found
        if is_named_tables(found):
            # Room ids are case-sensitive; everything else in the environment is written in capitals.
            name = parts.pop(0)
            place.append(name if name.startswith("!") else name.lower())
        table = table_of(found)
        if table is None or is_list(found) or not parts:
            raise _NotReadable(f"does not end in a key; allowed here: {found.description}")
        model = table


def _decode(found: FieldInfo | None, text: str, current_folder: Path) -> Any:
    if found is None:
        return text if text.startswith("~") else str(current_folder / text)
    if table_of(found) is not None or (is_list(found) and text.lstrip().startswith("[")):
        try:
            return json.loads(text)
        except ValueError as error:
            raise _NotReadable(f"is not JSON; allowed: {found.description}, written as JSON") from error
        except RecursionError as error:
            raise _NotReadable(f"is nested too deep; allowed: {found.description}, written as JSON") from error
    if is_list(found):
        return [item.strip() for item in text.split(",") if item.strip()]
    return text


def _put(values: dict[str, Any], place: list[str], value: Any) -> None:
    table: Any = values
    for key in place[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise _NotReadable(f"is a key of {key}, which another variable sets to what is no table")
    table[place[-1]] = value


def _is_configuration(name: str, text: str) -> bool:
    of_musher = name.startswith(_NOT_CONFIGURATION) or name in _OF_A_COMMAND
    of_kubernetes = _OF_KUBERNETES.fullmatch(name) or (name.endswith("_PORT") and "://" in text)
    return not (of_musher or of_kubernetes)


def read_environment(environ: Mapping[str, str], model: type[BaseModel]) -> Environment:
    """Read all variables that are configuration; what can't be understood is told in `problems`.

    Shorter names go first, so that a single key wins over a whole table given as JSON. A secret's relative path is
    taken from the current directory.
    """
    read = Environment()
    names = [name for name, text in environ.items() if name.startswith(PREFIX) and text]
    for name in sorted(names, key=lambda name: (name.count(_SEPARATOR), name)):
        if not _is_configuration(name, environ[name]):
            continue
        try:
            place, found = _resolve(model, name.removeprefix(PREFIX).split(_SEPARATOR))
            _put(read.values, place, _decode(found, environ[name], Path.cwd()))
            read.origins[tuple(place)] = name
        except _NotReadable as error:
            read.problems.append(f"{name}: {error}")
    return read
