"""The house's rules that can be read off its source: who may import whom, and how large and named things may be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import crdt

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("bot", "crdt")

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
HOLLOW_NAME = re.compile(r"(manager|helper|utils?|handler|service)s?$", re.IGNORECASE)

ONLY_IN = {
    "nio": "bot/matrix/",
    "pycrdt": "crdt/documents.py",
    "aiosqlite": "crdt/database.py",
}
"""The one place where a library may be imported."""

PURE = ("crdt/marks.py", "crdt/audit.py", "bot/policy.py", "bot/prompt.py", "bot/texts.py")
IO_LIBRARIES = {"asyncio", "aiohttp", "aiosqlite", "httpx", "nio", "pycrdt", "socket", "sqlite3", "subprocess"}

# Who may import what stands above the rooms.
ABOVE = {
    "bot.app": ("bot/cli.py", "bot/demo/"),
    "bot.cli": ("bot/__main__.py",),
    "bot.__main__": (),
}


@cache
def python_files(*folders: str) -> tuple[Path, ...]:
    """All Python files below some folders of the repository."""
    return tuple(sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py")))


@cache
def parsed(file: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def name(file: Path) -> str:
    """A file as it is named in messages."""
    return file.relative_to(ROOT).as_posix()


def imports(file: Path) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Every import of a file, those inside functions as well: line, module, and the names taken from it."""
    package = name(file).removesuffix(".py").split("/")[:-1]
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, module, tuple(alias.name for alias in node.names)


def attributes(file: Path, module: str) -> set[str]:
    """What a file takes from a module by `module.name`."""
    return {
        node.attr
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module
    }


def all_imports(*folders: str) -> Iterator[tuple[Path, int, str, tuple[str, ...]]]:
    """Every import below some folders."""
    for file in python_files(*folders):
        for line, module, names in imports(file):
            yield file, line, module, names


def within(module: str, package: str) -> bool:
    """Whether a module is the package or stands in it."""
    return module == package or module.startswith(f"{package}.")


def tell(problems: list[str], rule: str) -> None:
    """Fail with all places at once and what to do about them."""
    assert not problems, "\n".join([rule, *problems])


def test_the_store_knows_nothing_of_the_bot() -> None:
    tell(
        [
            f"{name(file)}:{line} imports {module}"
            for file, line, module, _ in all_imports("crdt")
            if within(module, "bot")
        ],
        "crdt/ must not import bot/: hand it what it needs as a value or a function.",
    )


def test_the_bot_uses_only_the_front_page_of_the_store() -> None:
    problems = []
    for file, line, module, names in all_imports("bot"):
        if module.startswith("crdt."):
            problems.append(f"{name(file)}:{line} imports {module}")
        if module == "crdt":
            wrong = sorted(set(names or attributes(file, "crdt")) - set(crdt.__all__))
            problems += [f"{name(file)}:{line} takes {one} from crdt" for one in wrong]
    tell(problems, "bot/ must take only what stands in crdt.__all__: use the front page, or add to it.")


@pytest.mark.parametrize(("library", "place"), ONLY_IN.items())
def test_a_library_stands_behind_one_door(library: str, place: str) -> None:
    tell(
        [
            f"{name(file)}:{line} imports {module}"
            for file, line, module, _ in all_imports(*PRODUCT)
            if within(module, library) and not name(file).startswith(place)
        ],
        f"{library} may be imported by {place} alone: ask that module for what you need.",
    )


@pytest.mark.parametrize(("module", "importers"), ABOVE.items())
def test_data_flows_down_from_cli_over_app_to_the_rooms(module: str, importers: tuple[str, ...]) -> None:
    above, _, leaf = module.rpartition(".")
    tell(
        [
            f"{name(file)}:{line} imports {module}"
            for file, line, found, names in all_imports("bot")
            if within(found, module) or (found == above and leaf in names)
            if not name(file).startswith(importers or ("nobody",))
        ],
        f"only {' and '.join(importers) or 'nobody'} may import {module}: "
        "let bot/app.py hand the room the one function that it needs.",
    )


def test_the_front_page_names_all_that_it_imports() -> None:
    page = ROOT / "crdt" / "__init__.py"
    imported = {one for _, module, names in imports(page) if within(module, "crdt") for one in names}
    assert sorted(imported) == sorted(crdt.__all__), "crdt/__init__.py: its imports and its __all__ must be the same"


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_does_no_io(module: str) -> None:
    file = ROOT / module
    assert file.is_file(), f"{module} is missing: if it moved, name its new place in PURE"
    tell(
        [
            f"{module}:{line} imports {found}"
            for line, found, _ in imports(file)
            if found.partition(".")[0] in IO_LIBRARIES
        ],
        f"{module} must stay pure: values in, values out. Move the I/O to its caller.",
    )


def test_no_file_is_longer_than_a_person_reads_at_once() -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in python_files(*PRODUCT, "tests")}
    tell(
        [f"{name(file)} has {lines} lines" for file, lines in lengths.items() if lines > MAX_FILE_LINES],
        f"No file over {MAX_FILE_LINES} lines: split it by what it knows.",
    )


def test_no_function_is_longer_than_a_screen() -> None:
    problems = []
    for file in python_files(*PRODUCT):
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    problems.append(f"{name(file)}:{node.lineno} {node.name} has {lines} lines")
    tell(problems, f"No function over {MAX_FUNCTION_LINES} lines: name its parts.")


def test_nothing_is_named_after_nothing() -> None:
    problems = []
    for file in python_files(*PRODUCT):
        if any(HOLLOW_NAME.search(part) for part in Path(name(file)).with_suffix("").parts):
            problems.append(name(file))
        problems += [
            f"{name(file)}:{node.lineno} class {node.name}"
            for node in ast.walk(parsed(file))
            if isinstance(node, ast.ClassDef) and HOLLOW_NAME.search(node.name)
        ]
    tell(problems, "No module or class called manager, helper, utils, handler or service: say what it is or knows.")


def polls(loop: ast.AST) -> bool:
    """Whether a loop asks for a condition again and again; it may pause between two questions."""
    return isinstance(loop, ast.While) and not isinstance(loop.test, ast.Constant)


def test_no_test_sleeps() -> None:
    problems = []
    for file in python_files("tests"):
        pauses = {id(node) for loop in ast.walk(parsed(file)) if polls(loop) for node in ast.walk(loop)}
        for node in ast.walk(parsed(file)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "sleep"):
                continue
            of_the_clock = isinstance(node.func.value, ast.Name) and node.func.value.id in {"asyncio", "time", "anyio"}
            only_yields = [argument.value for argument in node.args if isinstance(argument, ast.Constant)] == [0]
            if of_the_clock and not only_yields and id(node) not in pauses:
                problems.append(f"{name(file)}:{node.lineno} {ast.unparse(node)}")
    tell(problems, "Tests don't sleep: wait for the condition itself (an event, a line of output, a state).")


def test_nothing_is_left_to_be_done_later() -> None:
    later = re.compile(r"#.*\b(TO" + r"DO|FIX" + r"ME)\b")
    problems = [
        f"{name(file)}:{number}"
        for file in python_files(*PRODUCT, "tests")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if later.search(line)
    ]
    tell(problems, "Do it now, or open an issue; the source keeps no list of things to do.")
