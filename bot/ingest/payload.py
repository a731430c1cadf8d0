"""Reads values out of a sender's JSON, in which anything may be missing or of another type. Pure."""

from __future__ import annotations

from collections.abc import Iterator


class Incomplete(Exception):
    """A payload lacks something without which it is no event; `path` says what."""

    def __init__(self, path: str) -> None:
        super().__init__(f"it has no {path}")
        self.path = path


class Payload:
    """A JSON value, looked into by dotted paths: `pull_request.head.ref`."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def at(self, path: str) -> object:
        """Give the value at a path, `None` when there is none."""
        value = self.value
        for name in path.split("."):
            if not isinstance(value, dict):
                return None
            value = value.get(name)
        return value

    def text(self, path: str, default: str = "") -> str:
        """Give the string or whole number at a path as text; anything else counts as absent."""
        value = self.at(path)
        if isinstance(value, str) and value.strip():
            return value
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else default

    def need(self, path: str) -> str:
        """Give the text at a path.

        Raises:
            Incomplete: there is none.
        """
        found = self.text(path)
        if not found:
            raise Incomplete(path)
        return found

    def first(self, *paths: str) -> str:
        """Give the text at the first of the paths that has one, or `""`."""
        return next(filter(None, map(self.text, paths)), "")

    def is_true(self, path: str) -> bool:
        """Tell whether `true` stands at a path."""
        return self.at(path) is True

    def each(self, path: str) -> Iterator[Payload]:
        """Go through the array at a path; none is an empty one."""
        values = self.at(path)
        for value in values if isinstance(values, list) else ():
            yield Payload(value)
