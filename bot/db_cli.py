"""The commands that care for the database: `musher db verify / compact / backup / restore`.

Everything heavy is imported by the command that needs it.
"""

# ruff: noqa: T201 - printing is what commands do.

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from bot.config.sections import StoreConfig
    from crdt import Verification

_EXIT_FAILED: Final = 1
_TOLD_EVERY_S: Final = 0.1
_BAR: Final = 30
"""Characters of a whole bar."""


def add_db_commands(parser: argparse.ArgumentParser, config: argparse.ArgumentParser) -> None:
    """Add what `musher db` can do; `config` has the argument that names the configuration."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, act: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=[config])
        added.set_defaults(act=act)
        return added

    verify = command("verify", verify_database, "read the whole database and tell all that is wrong with it")
    verify.add_argument(
        "file", nargs="?", type=_file, metavar="FILE", help="verify this backup in place of the database"
    )
    command("compact", compact_database, "make the database as small as what it holds; the service must be stopped")
    backup = command("backup", back_up_database, "write a backup, also while the service runs")
    backup.add_argument("file", type=_file, metavar="FILE", help="the file to write")
    backup.add_argument("--force", action="store_true", help="overwrite FILE if there is one")
    restore = command("restore", restore_database, "put a backup in the database's place; the service must be stopped")
    restore.add_argument("file", type=_file, metavar="FILE", help="a file that 'musher db backup' wrote")


def _file(text: str) -> Path:
    if not Path(text).name:
        raise argparse.ArgumentTypeError(f"{text!r} names no file")
    return Path(text)


def verify_database(arguments: argparse.Namespace) -> int:
    """Run `musher db verify`: exit code 1 when something is wrong."""
    path = arguments.file or _store(arguments).path
    import crdt

    with Bar(sys.stderr) as bar:
        found = crdt.verify_database(path, bar.show)
    for problem in found.problems:
        print(_visible(problem))
    if found.problems:
        print(f"musher: {path} is damaged; restore a backup with 'musher db restore FILE'", file=sys.stderr)
        return _EXIT_FAILED
    print(f"{path} is whole: {_contents(found)}")
    return 0


def compact_database(arguments: argparse.Namespace) -> int:
    """Run `musher db compact`."""
    store = _store(arguments)
    import crdt

    with Bar(sys.stderr) as bar:
        done = asyncio.run(
            crdt.compact_database(
                store.path,
                segment_events=store.segment_events,
                retention_events=store.retention_events,
                retention_days=store.retention_days,
                progress=bar.show,
            )
        )
    print(f"{store.path} is compact: {_size(done.bytes_before)} before, {_size(done.bytes_after)} now")
    return 0


def back_up_database(arguments: argparse.Namespace) -> int:
    """Run `musher db backup FILE`."""
    path = _store(arguments).path
    import crdt

    with Bar(sys.stderr) as bar:
        found = crdt.back_up_database(path, arguments.file, force=arguments.force, progress=bar.show)
    print(f"{arguments.file} is a whole backup of {path}: {_contents(found)}")
    return 0


def restore_database(arguments: argparse.Namespace) -> int:
    """Run `musher db restore FILE`."""
    path = _store(arguments).path
    import crdt

    with Bar(sys.stderr) as bar:
        done = crdt.restore_database(path, arguments.file, progress=bar.show)
    print(f"{path} is restored: {_contents(done.verification)}")
    if done.aside is not None:
        print(f"what it was before is kept as {done.aside}; delete it when you are sure")
    return 0


def _store(arguments: argparse.Namespace) -> StoreConfig:
    from bot.config import load_store_config
    from bot.logs import configure_logging

    configure_logging("console", "error")
    return load_store_config(arguments.config)


def _contents(found: Verification) -> str:
    return f"{found.events} events of sled {found.sled_id}, {found.sessions} sessions"


def _size(size: int) -> str:
    return f"{size / 1_000_000:.1f} MB"


def _visible(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class Bar:
    """One line on a terminal that tells how far work has come; nothing where nobody looks at one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream if stream.isatty() else None
        self._told_at = 0.0
        self._doing = ""

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *ended: object) -> None:
        self._write("\r\x1b[K")

    def show(self, doing: str, done: int, total: int) -> None:
        """Tell of one step; those that come too soon after another are left out."""
        now = time.monotonic()
        if doing == self._doing and done < total and now - self._told_at < _TOLD_EVERY_S:
            return
        self._told_at, self._doing = now, doing
        self._write(f"\r\x1b[K{line(doing, done, total)}")

    def _write(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()


def line(doing: str, done: int, total: int) -> str:
    """Write one step as people see it."""
    if not total:
        return f"{doing} …"
    filled = _BAR * done // total
    return f"{doing}  [{'#' * filled}{'.' * (_BAR - filled)}] {100 * done // total:3} %"
