"""Writes the tables of the documents that the program itself knows best: keys, commands, error codes, pause
points, metrics.

    python -m tests.reference

brings docs/ up to date; a test fails while a table differs from what the program says.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from prometheus_client.core import Metric
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bot import cli, pause
from bot.config import Config
from bot.config.schema import FILE_SUFFIX, is_list, is_named_tables, is_secret, table_of
from bot.ingest.refusals import Refusal
from bot.metrics import Metrics

DOCS: Final = Path(__file__).parents[1] / "docs"


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


# Configuration


def config_keys() -> str:
    """Every key of the configuration, section by section."""
    return "\n\n".join(
        f"### `[{name}]`\n\n{table(('key', 'default', 'what it takes'), _rows(name, found))}"
        for name, found in Config.model_fields.items()
    )


def _rows(name: str, found: FieldInfo) -> Iterator[Sequence[str]]:
    section = table_of(found)
    assert section is not None
    yield from _keys(section, _below(name, found))


def _below(place: str, found: FieldInfo) -> str:
    if is_named_tables(found):
        return f'{place}."!room"' if place == "rooms" else f"{place}.NAME"
    return f"{place}[]" if is_list(found) else place


def _keys(section: type[BaseModel], place: str) -> Iterator[Sequence[str]]:
    for key, found in section.model_fields.items():
        inner = table_of(found)
        if inner is not None:
            yield from _keys(inner, _below(f"{place}.{key}", found))
            continue
        yield f"`{place}.{key}`", _default(found), found.description or ""
        if is_secret(found):
            holds = "one of them on each line" if is_list(found) else "it"
            yield f"`{place}.{key}{FILE_SUFFIX}`", "", f"in place of `{key}`: a file that holds {holds}"


def _default(found: FieldInfo) -> str:
    if found.is_required():
        return "required"
    value = found.get_default(call_default_factory=True, validated_data={})
    return "" if value is None else f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    match value:
        case timedelta():
            seconds = int(value.total_seconds())
            return f'"{seconds // 3600}h"' if seconds % 3600 == 0 else f'"{seconds}s"'
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case _:
            return f'"{value}"'


# Command line


def commands() -> str:
    """Every command with its arguments."""
    return "\n\n".join(_command(path, parser) for path, parser in leaves(cli._parser(), ()))


def leaves(
    parser: argparse.ArgumentParser, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command that can be given, with the words that lead to it."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield path, parser
    for action in below:
        for name, inner in action.choices.items():
            yield from leaves(inner, (*path, name))


def _command(path: tuple[str, ...], parser: argparse.ArgumentParser) -> str:
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    title = " ".join(("musher", *path, *(_usage(action) for action in actions)))
    text = f"### `musher {' '.join(path)}`\n\n{_sentence(parser.description)}\n\n    {title}"
    if not actions:
        return text
    return f"{text}\n\n{table(('argument', 'meaning'), (_argument(action) for action in actions))}"


def _sentence(text: str | None) -> str:
    assert text, "a command without a description"
    return text[0].upper() + text[1:]


def _usage(action: argparse.Action) -> str:
    name = _name(action)
    repeated = f"{name} …" if isinstance(action, argparse._AppendAction) else name
    return repeated if action.required else f"[{repeated}]"


def _name(action: argparse.Action) -> str:
    value = action.metavar or action.dest.upper()
    if not action.option_strings:
        return str(value)
    return action.option_strings[-1] if action.nargs == 0 else f"{action.option_strings[-1]} {value}"


def _argument(action: argparse.Action) -> Sequence[str]:
    return f"`{_name(action)}`", (action.help or "").replace("%%", "%")


# HTTP


def error_codes() -> str:
    """Every error code of the public listener."""
    found: dict[tuple[int, str], list[str]] = {}
    for kind in _kinds(Refusal):
        found.setdefault((kind.status, kind.code), []).append(_first_sentence(kind))
    rows = ((str(status), f"`{code}`", " Or: ".join(meanings)) for (status, code), meanings in sorted(found.items()))
    return table(("status", "code", "meaning"), rows)


def _kinds(root: type[Refusal]) -> Iterator[type[Refusal]]:
    for kind in root.__subclasses__():
        if "code" in vars(kind):
            yield kind
        yield from _kinds(kind)


def _first_sentence(kind: type[Refusal]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


# Pause points


def pause_points() -> str:
    """The list in the docstring of `bot.pause`."""
    return "\n".join(re.findall(r"^- `\w+`: .+$", pause.__doc__ or "", re.MULTILINE))


# Metrics


def metrics() -> str:
    """Every metric of the private listener."""
    rows = ((_metric_name(each), each.type, _labels(each), each.documentation) for each in Metrics().families())
    return table(("name", "type", "labels", "meaning"), iter(sorted(rows)))


def _metric_name(family: Metric) -> str:
    return f"`{family.name}_total`" if family.type == "counter" else f"`{family.name}`"


def _labels(family: Metric) -> str:
    found: dict[str, list[str]] = {}
    for sample in family.samples:
        for key, value in sample.labels.items():
            if key != "le":
                found.setdefault(key, []).append(f"`{value}`")
    if family.type != "counter":  # the values of a gauge's labels come with what is shown
        return ", ".join(f"`{key}`" for key in found)
    return "; ".join(f"`{key}`: {', '.join(values)}" for key, values in found.items())


TABLES: Final[dict[str, tuple[str, Callable[[], str]]]] = {
    "keys": ("configuration.md", config_keys),
    "commands": ("commands.md", commands),
    "codes": ("http.md", error_codes),
    "points": ("testing.md", pause_points),
    "metrics": ("monitoring.md", metrics),
}
"""What is written where: the name of the mark, the document, and what goes between its marks."""


def written(name: str, text: str, content: str) -> str:
    """A document with `content` between the marks of a table."""
    first, last = f"<!-- {name}: written by `python -m tests.reference` -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(first)
    assert found, f"the mark is missing: {first}"
    _, found, after = rest.partition(last)
    assert found, f"the mark is missing: {last}"
    return f"{before}{first}\n\n{content}\n\n{last}{after}"


def main() -> None:
    """Bring the documents up to date."""
    for name, (document, content) in TABLES.items():
        path = DOCS / document
        path.write_text(written(name, path.read_text(), content()))


if __name__ == "__main__":
    main()
