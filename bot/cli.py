"""The `musher` command: reads the arguments, runs one command, and tells every failure in one line.

Exit codes: 0 done, 1 it failed, 2 the arguments or the configuration are wrong, 130 or 143 ended by a signal.
Everything heavy is imported by the command that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bot.db_cli import add_db_commands, verify_database
from bot.ending import asked_for
from bot.errors import MusherError
from bot.ingest_cli import add_event_arguments, add_test_arguments, post_event, test_delivery
from bot.verify_cli import show_verify_status

if TYPE_CHECKING:
    from bot.config import Config
    from crdt import RecordedEvent, SessionSummary, StoreReader, TranscriptEntry

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells report it
EXIT_BROKEN_PIPE: Final = 141  # 128 + SIGPIPE
_EVENTS_A_PAGE: Final = 4_000  # a segment's usual size: a reader unpacks whole segments
_EVENT_KEYS: Final = (
    "sled_id",
    "event_seq",
    "story_id",
    "from_stage",
    "to_stage",
    "pipeline_event",
    "recorded_at",
)
_SESSION_KEYS: Final = ("session_id", "persona_name", "scope", "high_water", "turns")


class NoSuchSession(MusherError):
    """No session is stored for the room that was asked for."""

    def __init__(self, room: str, path: Path) -> None:
        super().__init__(f"no session of room {room} in {path}: 'musher sessions' lists those that there are")


class _ShowVersion(argparse.Action):
    """Prints the version; looks it up only then, since reading package metadata takes longer than all else here."""

    def __call__(self, parser: argparse.ArgumentParser, *ignored: object) -> None:
        from importlib.metadata import version

        print(f"musher {version('musher')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="musher",
        description="A Matrix chat bot whose language model always knows what the team's work pipeline did.",
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    config = argparse.ArgumentParser(add_help=False)
    config.add_argument("--config", type=Path, metavar="FILE", help="the TOML file (default: config.toml)")
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print one JSON object a line")

    def command(
        name: str, act: Callable[[argparse.Namespace], int], text: str, *parents: argparse.ArgumentParser
    ) -> Any:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=parents)
        added.set_defaults(act=act)
        return added

    command("run", _run, "run the service until SIGTERM or SIGINT", config)
    demo = command("demo", _demo, "start a homeserver, the bot and a sample pipeline here, and chat with the bot")
    demo.add_argument("--say", action="append", metavar="TEXT", help="say TEXT, print the reply, and exit; repeatable")
    demo.add_argument("--web", action="store_true", help="also serve a browser client, built with npm the first time")
    demo.add_argument("--model", metavar="NAME", help="answer with this model (default: digest, without a model)")
    demo.add_argument("--base-url", metavar="URL", help="the model's OpenAI-compatible server, up to /v1")
    demo.add_argument("--api-key-file", type=Path, metavar="FILE", help="a file that holds the server's key")
    check = command("check", _check, "check the configuration and tell all that is wrong with it", config)
    check.add_argument("--online", action="store_true", help="also try the homeserver, the login and the model")
    command("events", _events, "print the pipeline events in the log, oldest first", config, as_json)
    text = "print the rooms' sessions, or one with its transcript"
    sessions = command("sessions", _sessions, text, config, as_json)
    sessions.add_argument("room", nargs="?", metavar="ROOM", help="a room id: print that session and its transcript")
    command("verify-status", show_verify_status, "tell what others see of the bot's encryption keys", config)
    add_db_commands(command("db", verify_database, "verify, compact, back up or restore the database"), config)
    add_event_arguments(command("event", post_event, "post one pipeline event to a running service"))
    ingest = command("ingest", test_delivery, "try out what webhooks become").add_subparsers(
        metavar="COMMAND", required=True
    )
    text = "show what a delivery would become, and by which rule"
    add_test_arguments(ingest.add_parser("test", help=text, description=f"{text}.", parents=[config]))
    return parser


def _load_config(arguments: argparse.Namespace) -> Config:
    from bot.config import load_config

    return load_config(arguments.config)


def _run(arguments: argparse.Namespace) -> int:
    config = _load_config(arguments)
    from bot.app import run_service
    from bot.logs import configure_logging

    configure_logging(config.log.format, config.log.level)
    asyncio.run(run_service(config))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from bot.demo.play import run_demo

    return run_demo(arguments)


def _check(arguments: argparse.Namespace) -> int:
    config = _load_config(arguments)
    model = config.llm.model if config.llm.provider != "digest" else "no model"
    print(f"the configuration is valid: {config.matrix.user_id} at {config.matrix.homeserver}, {model}", flush=True)
    if not arguments.online:
        return 0
    from bot.logs import configure_logging

    configure_logging("console", "error")
    return 0 if asyncio.run(_try_out(config)) else EXIT_FAILED


async def _try_out(config: Config) -> bool:
    from bot.online import try_out

    all_work = True
    async for finding in try_out(config):
        print(f"{finding.part:<10}  {'works' if finding.works else 'FAILS'}  {_visible(finding.words)}", flush=True)
        all_work &= finding.works
    return all_work


def _events(arguments: argparse.Namespace) -> int:
    asyncio.run(_print_events(_store_path(arguments), as_json=arguments.json))
    return 0


def _sessions(arguments: argparse.Namespace) -> int:
    path = _store_path(arguments)
    if arguments.room is None:
        asyncio.run(_print_sessions(path, as_json=arguments.json))
    else:
        asyncio.run(_print_session(path, arguments.room, as_json=arguments.json))
    return 0


def _store_path(arguments: argparse.Namespace) -> Path:
    from bot.config import load_store_config

    return load_store_config(arguments.config).path


async def _pages(reader: StoreReader) -> AsyncIterator[list[RecordedEvent]]:
    after = 0
    while page := await reader.read_events(after=after, limit=_EVENTS_A_PAGE):
        yield page
        after = page[-1].event_seq


async def _print_events(path: Path, *, as_json: bool) -> None:
    from crdt import StoreReader

    table = _Table(_EVENT_KEYS)
    async with StoreReader.open(path) as reader:
        async for page in _pages(reader):
            rows = [{key: getattr(event, key) for key in _EVENT_KEYS} for event in page]
            _print_rows(rows, table, as_json=as_json)


async def _print_sessions(path: Path, *, as_json: bool) -> None:
    from crdt import StoreReader

    async with StoreReader.open(path) as reader:
        rows = [_session_row(summary) for summary in await reader.list_sessions()]
    _print_rows(rows, _Table(_SESSION_KEYS), as_json=as_json)


async def _print_session(path: Path, room: str, *, as_json: bool) -> None:
    from dataclasses import asdict

    from crdt import StoreReader

    async with StoreReader.open(path) as reader:
        summary = await reader.read_session(room)
        if summary is None:
            raise NoSuchSession(room, path)
        transcript = await reader.read_transcript(summary.session_id)
    row = _session_row(summary)
    if as_json:
        _print_json({**row, "transcript": [asdict(entry) for entry in transcript]})
        return
    _print_rows([row], _Table(_SESSION_KEYS), as_json=False)
    for entry in transcript:
        print("\n" + "\n".join(_entry_lines(entry)))


def _session_row(summary: SessionSummary) -> dict[str, Any]:
    return {key: getattr(summary, key) for key in _SESSION_KEYS}


def _entry_lines(entry: TranscriptEntry) -> Iterator[str]:
    yield f"{entry.role}{' (failed)' if entry.failed else ''}  {_visible(entry.key)}"
    for text in (*entry.lines, *entry.context, entry.text):
        yield from (f"  {_visible(line)}" for line in text.split("\n"))


def _print_json(row: dict[str, Any]) -> None:
    print(json.dumps(row, separators=(",", ":")))


def _print_rows(rows: Sequence[dict[str, Any]], table: _Table, *, as_json: bool) -> None:
    if not as_json:
        table.print(rows)
        return
    for row in rows:
        _print_json(row)


def _visible(value: object) -> str:
    """Write a value for a terminal: what can't be seen there, or would steer it, is escaped."""
    text = json.dumps(value, separators=(",", ":")) if isinstance(value, dict) else str(value)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class _Table:
    """Rows under a heading, in columns that only ever grow, so that a long table can be printed page by page."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = keys
        self._widths = [len(key) for key in keys]
        self._headed = False

    def print(self, rows: Sequence[dict[str, Any]]) -> None:
        cells = [[_visible(row[key]) for key in self._keys] for row in rows]
        self._widths = [
            max(column) for column in zip(self._widths, *([len(c) for c in row] for row in cells), strict=True)
        ]
        if not self._headed:
            cells.insert(0, list(self._keys))
            self._headed = True
        for row in cells:
            padded = (cell.ljust(width) for cell, width in zip(row, self._widths, strict=True))
            print("  ".join(padded).rstrip())


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _sentence(error: BaseException) -> str | None:
    """Give the line for an error that is meant for people, or `None` for one that nobody foresaw."""
    if isinstance(error, MusherError):
        return str(error)
    if isinstance(error, OSError):
        what = error.strerror or str(error) or type(error).__name__
        return f"{error.filename}: {what}" if error.filename is not None else what
    from crdt import CrdtError

    return str(error) if isinstance(error, CrdtError) else None


def _tell(error: BaseException) -> int:
    """Print each error in one line, log the trace of those that nobody foresaw, and give the exit code."""
    import structlog

    if not structlog.is_configured():
        from bot.logs import configure_logging

        configure_logging("console")
    log = structlog.get_logger(__name__)
    code = 0
    told: set[str] = set()
    for leaf in _leaves(error):
        sentence = _sentence(leaf)
        if sentence is None:
            log.error("unforeseen_error", exc_info=leaf)
            sentence = (
                f"stopped by an error that nobody foresaw, {type(leaf).__name__}; its trace is above, please report it"
            )
        else:
            log.debug("stopped_by_error", exc_info=leaf)
        if sentence not in told:
            print(f"musher: {sentence}", file=sys.stderr)
        told.add(sentence)
        code = max(code, getattr(leaf, "exit_code", EXIT_FAILED))
    return code


def _open_what_is_closed() -> None:
    """Give a stream that was closed before the start somewhere to go: its number would be the next file's."""
    if sys.stdin is None:  # and stays so, for a command to say that it is closed
        os.open(os.devnull, os.O_RDONLY)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def _print_to_the_end(act: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run a command that prints; when its reader has gone away (`| head`), end without a word."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = act(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more when it ends, and would complain about the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code; `argv` defaults to the process's own arguments."""
    _open_what_is_closed()
    arguments = _parser().parse_args(argv)
    try:
        # The service prints nothing: a pipe that breaks there is not that of its output.
        act: Callable[[argparse.Namespace], int] = arguments.act
        return act(arguments) if act is _run else _print_to_the_end(act, arguments)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    # Whatever a command raises ends here: a person gets a line, never a traceback.
    except Exception as error:
        ended = asked_for()
        return _tell(error) if ended is None else ended
