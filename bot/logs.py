"""Sets up what the service tells while it runs: one line for each fact, secrets hidden, all libraries included."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LogFormat = Literal["json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

HIDDEN: Final = "(hidden)"
_OWN_LOGGERS: Final = ("bot", "crdt")
# "*_tokens" are counts of a model's tokens and stay; "tokens" alone are bearer tokens.
_SECRET_KEY = re.compile(
    r"(?:^|_)(?:password|passwd|passphrase|secrets?|api_?key|authorization|token|private_key)$|^tokens$", re.IGNORECASE
)
_SECRET_IN_TEXT = re.compile(r"(?i)(\bbearer\s+(?=\S{8})|\baccess_token[\"']?\s*[=:]\s*[\"']?)[^\s\"'&,;\\]+")


def _hide(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _hide_under(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_hide(inner) for inner in value]
    return value


def _hide_under(key: str, value: Any) -> Any:
    if value is not None and _SECRET_KEY.search(key.replace("-", "_")):
        return HIDDEN
    return _hide(value)


def hide_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Hide, at any depth, the values of keys that look like secrets; a structlog processor."""
    return {key: _hide_under(key, value) for key, value in event.items()}


def hide_secrets_in_text(logger: WrappedLogger, method: str, line: str) -> str:
    """Hide bearer tokens and access tokens inside of a finished line: libraries put them into texts and URLs."""
    return _SECRET_IN_TEXT.sub(rf"\1{HIDDEN}", line)


def _renderers(log_format: LogFormat, stream: TextIO) -> list[Processor]:
    if log_format == "console":
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain)]
    # Local variables would bring people's messages and secrets into the log.
    frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(frames), structlog.processors.JSONRenderer()]


def configure_logging(log_format: LogFormat = "json", level: LogLevel = "info", stream: TextIO | None = None) -> None:
    """Send every log line of the process to `stream` (default: standard error).

    Our own lines are written from `level` up, those of libraries from warning up, all by the same renderer with the
    time in UTC (ISO 8601). Calling it again replaces the earlier set-up.
    """
    stream = stream or sys.stderr
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            hide_secrets,
            *_renderers(log_format, stream),
            hide_secrets_in_text,  # type: ignore[list-item]  # what follows a renderer is given text
        ],
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    _route_standard_logging(formatter, level, stream)


def _route_standard_logging(formatter: logging.Formatter, level: LogLevel, stream: TextIO) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    own_level = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(handlers=[handler], level=max(own_level, logging.WARNING), force=True)
    for name in _OWN_LOGGERS:
        logging.getLogger(name).setLevel(own_level)
    logging.captureWarnings(True)
