from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from bot.logs import LogFormat, LogLevel, configure_logging


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # Not through basicConfig(force=True), which would close pytest's own handlers.
    root.handlers[:] = []
    yield
    logging.captureWarnings(False)
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("bot", "crdt"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def configured(log_format: LogFormat = "json", level: LogLevel = "info") -> io.StringIO:
    stream = io.StringIO()
    configure_logging(log_format, level, stream)
    return stream


def parsed(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_each_fact_is_one_json_object_with_the_time_in_utc() -> None:
    stream = configured()
    structlog.get_logger("bot.turn").info("assemble", session="!r", sled_entries=3)
    (line,) = parsed(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line.pop("timestamp"))
    assert line == {"event": "assemble", "session": "!r", "sled_entries": 3, "level": "info", "logger": "bot.turn"}


def test_own_lines_follow_the_level_and_libraries_speak_from_warning_up() -> None:
    stream = configured(level="debug")
    structlog.get_logger("crdt.store").debug("kept")
    logging.getLogger("nio.client").info("dropped")
    logging.getLogger("aiohttp.access").warning("heard %s", "too")
    assert [(line["event"], line["level"]) for line in parsed(stream)] == [("kept", "debug"), ("heard too", "warning")]


def test_lines_below_the_level_are_dropped() -> None:
    stream = configured(level="error")
    structlog.get_logger("bot.turn").warning("dropped")
    logging.getLogger("nio").warning("dropped")
    assert stream.getvalue() == ""


def test_context_that_was_bound_once_is_in_each_line() -> None:
    stream = configured()
    with structlog.contextvars.bound_contextvars(session="!r"):
        structlog.get_logger("bot.turn").info("turn_begun")
    assert parsed(stream)[0]["session"] == "!r"


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "access_token",
        "Authorization",
        "api_key",
        "api-key",
        "token",
        "tokens",
        "secret",
        "secrets",
        "new_token",
    ],
)
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_secret_is_hidden_at_any_depth(log_format: LogFormat, key: str) -> None:
    stream = configured(log_format)
    log = structlog.get_logger("bot.x")
    log.warning("at_the_top", **{key: "hunter2"})
    log.warning("below", request={"headers": [{key: "hunter2"}]})
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count("(hidden)") == 2


def test_counts_of_a_models_tokens_are_not_secrets() -> None:
    stream = configured()
    structlog.get_logger("bot.llm").info("reply", prompt_tokens=7, reply_tokens=2)
    assert (parsed(stream)[0]["prompt_tokens"], parsed(stream)[0]["reply_tokens"]) == (7, 2)


def test_tokens_inside_of_a_librarys_text_are_hidden() -> None:
    stream = configured()
    logging.getLogger("nio").warning("GET /sync?access_token=hunter2&since=s1 failed")
    logging.getLogger("aiohttp").error("sent {'Authorization': 'Bearer hunter2hunter2'}")
    assert "hunter2" not in stream.getvalue()
    assert "since=s1 failed" in stream.getvalue()


def test_a_word_after_bearer_in_prose_stays() -> None:
    stream = configured()
    structlog.get_logger("bot.ingest").info("the bearer token is not known")
    assert parsed(stream)[0]["event"] == "the bearer token is not known"


def fail() -> None:
    text = "what a person wrote"
    raise ValueError(f"failed after {len(text)} characters")


def test_an_exception_is_a_structured_trace_without_local_variables() -> None:
    stream = configured()
    try:
        fail()
    except ValueError:
        structlog.get_logger("bot.turn").exception("turn_failed")
        logging.getLogger("nio").exception("sync failed")
    for line in parsed(stream):
        (trace,) = line["exception"]
        assert (trace["exc_type"], trace["exc_value"]) == ("ValueError", "failed after 19 characters")
        assert trace["frames"][-1]["name"] == "fail"
    assert len(parsed(stream)) == 2
    assert "what a person wrote" not in stream.getvalue()


def test_on_a_console_a_line_is_for_people_and_a_trace_is_plain() -> None:
    stream = configured("console")
    try:
        fail()
    except ValueError:
        structlog.get_logger("bot.turn").exception("turn_failed", session="!r")
    text = stream.getvalue()
    assert "turn_failed" in text
    assert "session=!r" in text
    assert "ValueError: failed after 19 characters" in text
    assert "what a person wrote" not in text
    assert "\x1b" not in text


def test_a_warning_of_python_is_a_log_line_like_others() -> None:
    stream = configured()
    # pytest keeps warnings for its own summary; what a process does without it is asked here.
    with warnings.catch_warnings():
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert parsed(stream)[0]["logger"] == "py.warnings"


def test_configuring_again_replaces_the_earlier_set_up() -> None:
    first = configured()
    second = configured(level="error")
    structlog.get_logger("bot.x").error("once")
    assert first.getvalue() == ""
    assert len(parsed(second)) == 1
