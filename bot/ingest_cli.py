"""The commands about events that come in: `musher ingest test` and `musher event`.

Everything heavy is imported by the command that needs it.
"""

# ruff: noqa: T201 - printing is what commands do.

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bot.errors import MusherError

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from multidict import CIMultiDict

    from bot.ingest import Source
    from bot.ingest.mapping import Mapped

URL, TOKEN = "MUSHER_URL", "MUSHER_TOKEN"
_PATH: Final = "/v1/events"
ATTEMPTS: Final = 5
_WAIT_S: Final = 1.0
"""Before the second attempt; twice as long before each further one."""
_LONGEST_WAIT_S: Final = 30.0
_TIMEOUT_S: Final = 20.0
_COME_BACK: Final = frozenset({408, 429, 500, 502, 503, 504})


class UnusableArgument(MusherError):
    """An argument, or a variable in its place, can't be used."""

    exit_code = 2


class NotDelivered(MusherError):
    """The event was not taken; the message has the service's own words."""


def add_event_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what `musher event` takes."""
    parser.add_argument(
        "--story", required=True, metavar="ID", help="what the event is about, like 42 or owner/repo#42"
    )
    parser.add_argument("--from", dest="from_stage", default="", metavar="STAGE", help="the stage that it leaves")
    parser.add_argument("--to", dest="to_stage", default="", metavar="STAGE", help="the stage that it comes to")
    parser.add_argument("--event", required=True, metavar="NAME", help="what happened, like merged")
    parser.add_argument("--id", metavar="ID", help="the event's own name: sent twice, it is stored once (default: new)")
    parser.add_argument("--url", help=f"the service's address, like http://127.0.0.1:8080 (default: ${URL})")
    parser.add_argument(
        "--token", help=f"one of ingest.tokens; others can read it in the process list: prefer ${TOKEN}"
    )
    parser.set_defaults(act=post_event)


def add_test_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what `musher ingest test` takes."""
    parser.add_argument("file", metavar="FILE", help="the body of a delivery; - reads it from standard input")
    parser.add_argument("--source", required=True, metavar="NAME", help="a source of the configuration, by its name")
    parser.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'", help="repeatable")
    parser.set_defaults(act=test_delivery)


def test_delivery(arguments: argparse.Namespace) -> int:
    """Show what a delivery would become: the events, the rule that matched, or why there are none. Stores nothing."""
    from bot.config import load_config
    from bot.ingest.body import MAX_BODY_BYTES, check_size
    from bot.ingest.refusals import Refusal
    from bot.ingest.strict_json import parse_json
    from bot.reading import read_up_to

    source = _find_source(load_config(arguments.config).ingest.sources, arguments.source)
    headers = _headers(arguments.header)
    enough = MAX_BODY_BYTES + 1
    body = _standard_input(enough) if arguments.file == "-" else read_up_to(Path(arguments.file), enough)
    try:
        check_size(len(body))
        content = parse_json(body)
        mapped = source.map(headers, content)
    except Refusal as refusal:
        print(f"refused with {refusal.status} {refusal.code}: {refusal.message}")
        return 1
    name = source.event_name(headers, content)
    _print_mapped(source, name, mapped)
    return 0


def _standard_input(size: int) -> bytes:
    if sys.stdin is None:
        raise UnusableArgument("FILE -: standard input is closed; name a file, or pipe the body in")
    return sys.stdin.buffer.read(size)


def _find_source(configured: Sequence[Any], name: str) -> Source:
    from bot.ingest import Source

    for source in configured:
        if source.name == name:
            return Source(source)
    known = ", ".join(source.name for source in configured) or "none"
    raise UnusableArgument(f"--source {name}: the configuration has no such source (it has: {known})")


def _headers(given: Sequence[str]) -> CIMultiDict[str]:
    from multidict import CIMultiDict

    headers: CIMultiDict[str] = CIMultiDict()
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise UnusableArgument(f"--header {text!r}: it must be like 'X-GitHub-Event: issues'")
        headers.add(name.strip(), value.strip())
    return headers


def _print_mapped(source: Source, event_name: str, mapped: Mapped) -> None:
    from crdt import audit_line

    print(
        f"source {source.name} ({source.kind}), event {event_name or '(unnamed)'}: nothing is verified or stored here"
    )
    if not mapped.events:
        print(f"ignored by {mapped.by}: {mapped.reason}")
        if not event_name:
            print("a sender that names the event in a header needs that header, like --header 'X-GitHub-Event: issues'")
        return
    print(f"matched by {mapped.by}:")
    for event in mapped.events:
        print(f"  {audit_line(event)}")


def post_event(arguments: argparse.Namespace) -> int:
    """Post one event to a running service, again while it may help; the event's id makes it count once."""
    url = _address(arguments.url or os.environ.get(URL) or "")
    token = arguments.token or os.environ.get(TOKEN) or ""
    if not token:
        raise UnusableArgument(f"the token is missing: set {TOKEN} to one of ingest.tokens")
    if not (token.isascii() and token.isprintable()):
        raise UnusableArgument("the token holds characters that no HTTP header can carry")
    event = {
        # An empty one is a variable that was not set: as a new id, it would make each repetition an event of its own.
        "id": str(uuid.uuid4()) if arguments.id is None else arguments.id,
        "story_id": arguments.story,
        "from_stage": arguments.from_stage,
        "to_stage": arguments.to_stage,
        "pipeline_event": arguments.event,
    }
    outcome = _deliver(f"{url.removesuffix(_PATH)}{_PATH}", token, event)
    seq = outcome.get("first_seq")
    print(f"event {seq} is in the log" if seq is not None else "an event with this id is in the log already")
    return 0


def _address(given: str) -> str:
    from pydantic import TypeAdapter, ValidationError

    from bot.config.values import HttpUrl

    if not given:
        raise UnusableArgument(f"the service's address is missing: set {URL}=http://127.0.0.1:8080, or give --url")
    try:
        return TypeAdapter(HttpUrl).validate_python(given)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise UnusableArgument(
            f"the service's address {problem}: it must be like http://127.0.0.1:8080 (in {URL} or --url)"
        ) from None


def _deliver(
    url: str, token: str, event: Mapping[str, str], wait: Callable[[float], None] = time.sleep
) -> Mapping[str, Any]:
    """Post an event, up to `ATTEMPTS` times while the service is away or busy.

    Raises:
        NotDelivered: it was refused, or never taken.
    """
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            print(f"musher: {problem}; trying again", file=sys.stderr)
        status, answer, retry_after = _post_once(url, token, event)
        if 200 <= status < 300 and isinstance(answer, dict):
            return answer
        problem = f"{url} answered {status}: {_message(answer)}" if status else f"{url} can't be reached: {answer}"
        if status and status not in _COME_BACK:  # also a 2xx that is not in our words
            raise NotDelivered(problem)
        if attempt + 1 < ATTEMPTS:
            wait(min(max(_WAIT_S * 2**attempt, retry_after), _LONGEST_WAIT_S))
    raise NotDelivered(f"{problem}; given up after {ATTEMPTS} attempts")


def _post_once(url: str, token: str, event: Mapping[str, str]) -> tuple[int, Any, float]:
    """Give the status (0: nobody answered), the answer's JSON or the problem, and the seconds of Retry-After."""
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class NoRedirect(HTTPRedirectHandler):
        """A token must not follow a redirect to another host."""

        def redirect_request(self, *_: object) -> None:
            return None

    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = Request(url, json.dumps(event).encode(), headers)
    try:
        with build_opener(NoRedirect).open(request, timeout=_TIMEOUT_S) as response:
            return response.status, _json(response), 0.0
    except HTTPError as error:
        with error:
            wait = error.headers.get("Retry-After") or "0"
            return error.code, _json(error), float(wait) if wait.isdigit() else 0.0
    except URLError as error:
        return 0, error.reason, 0.0
    except (OSError, HTTPException) as error:
        return 0, error, 0.0


def _json(response: HTTPResponse | Any) -> Any:
    try:
        return json.loads(response.read(1_000_000))
    except ValueError:
        return {}


def _message(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return str(message) if message else "(no message; is this the address of a Musher?)"
