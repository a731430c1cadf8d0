"""Values of JSON that somebody else made: of any type, whatever the specification says."""

from __future__ import annotations

from typing import Any


def as_object(value: object) -> dict[str, Any]:
    """Give an object as it is; anything else counts as one without fields."""
    return value if isinstance(value, dict) else {}
