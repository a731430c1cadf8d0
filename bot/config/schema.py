"""Looks into the sections' shape: which table, list or secret stands behind a key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

FILE_SUFFIX = "_file"


def _leaves(annotation: Any) -> Iterator[Any]:
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from _leaves(argument)


def table_of(field: FieldInfo) -> type[BaseModel] | None:
    """Give the section that a field holds, be it directly, in a list, or in a table of tables."""
    for leaf in _leaves(field.annotation):
        if isinstance(leaf, type) and issubclass(leaf, BaseModel):
            return leaf
    return None


def is_secret(field: FieldInfo) -> bool:
    """Tell whether a field holds a secret, or a list of them."""
    return any(leaf is SecretStr for leaf in _leaves(field.annotation))


def is_list(field: FieldInfo) -> bool:
    """Tell whether a field holds a list."""
    return get_origin(field.annotation) is tuple


def is_named_tables(field: FieldInfo) -> bool:
    """Tell whether a field holds tables under names of the operator's choice."""
    return get_origin(field.annotation) is dict


def secret_behind(model: type[BaseModel], key: str) -> str | None:
    """Give the secret that `<secret>_file` reads, or `None` when the key is no such one."""
    name = key.removesuffix(FILE_SUFFIX)
    field = model.model_fields.get(name)
    return name if name != key and field is not None and is_secret(field) else None


def keys_of(model: type[BaseModel]) -> list[str]:
    """Give every key that a section accepts, those that read a secret from a file included."""
    files = [name + FILE_SUFFIX for name, field in model.model_fields.items() if is_secret(field)]
    return [*model.model_fields, *files]


def locate(model: type[BaseModel], place: Sequence[str | int]) -> tuple[type[BaseModel], FieldInfo | None]:
    """Follow a path of keys; give the section it ends in and the field there, or `None` for an unknown key."""
    field: FieldInfo | None = None
    parts = iter(place)
    for part in parts:
        field = model.model_fields.get(str(part))
        if field is None:
            return model, None
        if is_list(field) or is_named_tables(field):
            next(parts, None)
        table = table_of(field)
        if table is None:
            return model, field
        model = table
    return model, field
