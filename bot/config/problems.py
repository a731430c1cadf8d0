"""Says what is wrong with a value: `key = value: what is wrong; allowed: …`, one line, secrets hidden."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from bot.config.schema import is_secret, keys_of, locate, table_of

Place = tuple[str | int, ...]

HIDDEN: Final = "(hidden)"
_SHOWN_CHARACTERS: Final = 80
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")  # TOML 1.0, "Keys"
_KEY_MARK: Final = "[key]"  # pydantic's mark for "the key itself is wrong, not what stands behind it"

_SAYINGS: Final = (
    ("missing", "is missing"),
    ("literal_error", "is none of the known words"),
    ("string_pattern_mismatch", "does not have the right form"),
    ("int_", "is not a whole number"),
    ("float_", "is not a number"),
    ("finite_number", "is not a number"),
    ("bool_", "is neither true nor false"),
    ("string_", "is not a string"),
    ("path_", "is not a path"),
    ("tuple_", "is not a list"),
    ("dict_", "is not a table"),
    ("model_", "is not a table"),
    ("greater_than", "is out of range"),
    ("less_than", "is out of range"),
)


def write_key(place: Sequence[str | int]) -> str:
    """Write a path of keys as TOML does: `ingest.sources[0].kind`, `rooms."!r:x".persona`."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if _BARE_KEY.fullmatch(part) else json.dumps(part, ensure_ascii=False)
            text += f".{name}" if text else name
    return text


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Say which of the known keys was probably meant, else all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    listed = f"allowed: {', '.join(known)}"
    return f"did you mean {close[0]}? {listed}" if close else listed


def _shown(value: object) -> str:
    """Show a value that is no secret. Credentials and queries inside of URLs are hidden all the same."""
    if isinstance(value, str):
        masked = re.sub(r"//[^/@\s]*@", f"//{HIDDEN}@", value)
        masked = re.sub(r"(://[^?\s]*\?).*", rf"\1{HIDDEN}", masked)
        text = json.dumps(masked, ensure_ascii=not masked.isprintable())
    else:
        text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _says(error: ErrorDetails) -> str:
    for prefix, saying in _SAYINGS:
        if error["type"].startswith(prefix):
            return saying
    return error["msg"]


def _origin(place: Place, origins: Mapping[Place, str]) -> str:
    for length in range(len(place), 0, -1):
        name = origins.get(place[:length])
        if name is not None:
            return f" (from {name})"
    return ""


def unknown_key(key: str, section: type[BaseModel]) -> str:
    """Say that a section has no such key, and which ones it has."""
    return f"unknown key; {did_you_mean(key, keys_of(section))}"


def describe(error: ErrorDetails, model: type[BaseModel], origins: Mapping[Place, str]) -> str:
    """Turn one of pydantic's errors into one line; `origins` tells which places the environment set."""
    place: Place = tuple(part for part in error["loc"] if part != _KEY_MARK)
    section, field = locate(model, place)
    key = write_key(place) + _origin(place, origins)
    if field is None:
        # Its value isn't shown: it may be a secret under a misspelt name.
        return f"{key}: {unknown_key(str(place[-1]), section)}"
    value = error["input"]
    if error["type"] != "missing" and isinstance(value, str | int | float):
        if is_secret(field):
            key += f" = {HIDDEN}"
        elif table_of(field) is None:
            key += f" = {_shown(value)}"
    elif error["type"] != "missing" and value is not None and is_secret(field):
        key += f" = {HIDDEN}"
    return f"{key}: {_says(error)}; allowed: {field.description}"
