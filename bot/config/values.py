"""The kinds of value that a key can hold, each checked once, at the door."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import urlsplit

import jmespath
from jmespath.exceptions import JMESPathError
from jmespath.functions import Functions
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_core import PydanticCustomError

_Item = TypeVar("_Item")

WRONG: Final = "wrong"
"""The error type of our own findings; their text is already a sentence for people."""

_SERVER = r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?"
_USER_ID = re.compile(rf"@[^:\s]+:{_SERVER}")
_USER_PATTERN = re.compile(r"@[^:\s]+:[A-Za-z0-9.\-*?:\[\]]+")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_DURATION: Final = timedelta(days=3650)
_MATRIX_ID_BYTES: Final = 255  # Matrix specification, appendices, "Common identifier format"


def wrong(problem: str) -> PydanticCustomError:
    """Build the error that says what is wrong with a value; what is allowed is the field's description."""
    return PydanticCustomError(WRONG, "{problem}", {"problem": problem})


@cache
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in pattern))


def user_matches(pattern: str, user_id: str) -> bool:
    """Tell whether a user id fits a pattern: `*` any characters, `?` one; neither reaches across the colon.

    Only these two are special (as in Matrix policy lists): brackets stand for themselves, as in IPv6 server names.
    """
    pattern_local, _, pattern_server = pattern.partition(":")
    local, _, server = user_id.partition(":")
    return bool(_glob(pattern_local).fullmatch(local) and _glob(pattern_server).fullmatch(server))


def is_visible(text: str) -> bool:
    """Tell whether each character can be seen: no spaces, no controls, not empty."""
    return bool(text) and text.isprintable() and not any(char.isspace() for char in text)


def _user_id(text: str) -> str:
    if not _USER_ID.fullmatch(text) or len(text.encode()) > _MATRIX_ID_BYTES:
        raise wrong("is not a user id")
    return text


def _user_pattern(text: str) -> str:
    if not _USER_PATTERN.fullmatch(text):
        raise wrong("is not a pattern of user ids")
    return text


def _room_id(text: str) -> str:
    # Room version 12 has ids without a server, so nothing more can be said about their shape.
    if not text.startswith("!") or len(text) < 2 or not is_visible(text) or len(text.encode()) > _MATRIX_ID_BYTES:
        raise wrong('is not a room id (a room id starts with "!"; an alias starts with "#" and does not do)')
    return text


def _sled_id(text: str) -> str:
    if not is_visible(text) or len(text) > 100:
        raise wrong("is not 1-100 visible characters")
    return text


def _can_be_a_host(name: str) -> bool:
    try:
        name.encode("idna")
    except UnicodeError:  # an empty label, or one of over 63 bytes
        return False
    return is_visible(name)


def _host(text: str) -> str:
    if not _can_be_a_host(_not_blank(text)):
        raise wrong("is not a host")
    return text


def _addresses(host: str) -> list[IPv4Address | IPv6Address]:
    try:
        return [ip_address(host)]
    except ValueError:  # a name: what others mean is known only to who is asked
        return [ip_address("127.0.0.1"), ip_address("::1")] if host == "localhost" else []


def share_an_address(host: str, other: str) -> bool:
    """Tell whether two hosts to listen on have an address in common, as far as can be told without asking anybody."""
    return host == other or any(
        one == two or (one.version == two.version and (one.is_unspecified or two.is_unspecified))
        for one in _addresses(host)
        for two in _addresses(other)
    )


def _http_url(text: str) -> str:
    try:
        url = urlsplit(text)
        known = url.scheme in ("http", "https") and url.hostname and (url.port is None or url.port > 0)
    except ValueError as error:
        raise wrong(f"is not a URL ({error})") from error
    if not known or not is_visible(text):
        raise wrong("is not an http or https URL")
    if "@" in url.netloc or url.query or url.fragment:
        raise wrong("has more than a scheme, a host, a port and a path")
    if not _can_be_a_host(url.hostname or ""):
        raise wrong("names a host that nobody can have")
    if not url.path.isascii():
        raise wrong("has characters in its path that must be percent-encoded")
    return text.rstrip("/")


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise wrong("is not a duration")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(value))
    if seconds > _LONGEST_DURATION.total_seconds():
        raise wrong(f"is longer than {_LONGEST_DURATION.days} days")
    return timedelta(seconds=seconds)


def _positive(duration: timedelta) -> timedelta:
    if not duration:
        raise wrong("is zero")
    return duration


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise wrong("is not a number")
    return value


def not_empty(items: tuple[_Item, ...]) -> tuple[_Item, ...]:
    """Refuse an empty list. Not by pydantic's `min_length`, which takes wrong items for absent ones."""
    if not items:
        raise wrong("is empty")
    return items


def _file_path(path: Path) -> Path:
    if path.name in ("", "..") or "\0" in str(path):
        raise wrong("names no file")
    return path


def _not_blank(text: str) -> str:
    if not text.strip():
        raise wrong("is empty")
    return text


def _secret(secret: SecretStr) -> SecretStr:
    if not secret.get_secret_value().strip():
        raise wrong("is empty")
    return secret


def _header_secret(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if not is_visible(text) or not text.isascii():
        raise wrong("is empty, or has spaces or characters that no HTTP header can carry")
    return secret


def is_whsec(secret: SecretStr) -> bool:
    """Tell whether this is a Standard Webhooks secret (`whsec_` and base64)."""
    return secret.get_secret_value().startswith("whsec_")


def _webhook_secret(secret: SecretStr) -> SecretStr:
    _secret(secret)
    if is_whsec(secret):
        try:
            key = base64.b64decode(secret.get_secret_value().removeprefix("whsec_"), validate=True)
        except binascii.Error as error:
            raise wrong("starts with whsec_, but what follows is not base64") from error
        if not key:
            raise wrong("has nothing after whsec_")
    return secret


def _functions(node: Mapping[str, Any]) -> Iterator[str]:
    if node["type"] == "function_expression":
        yield node["value"]
    for child in node["children"]:
        yield from _functions(child)


def _jmespath(text: str) -> str:
    try:
        unknown = sorted(set(_functions(jmespath.compile(text).parsed)) - Functions.FUNCTION_TABLE.keys())
    except JMESPathError as error:
        # The parser adds the expression and a caret on lines of their own.
        raise wrong(f"is not JMESPath: {str(error).splitlines()[0].rstrip(':')}") from error
    if unknown:
        raise wrong(f"calls {', '.join(unknown)}(), which JMESPath does not have")
    return text


FilePath = Annotated[Path, AfterValidator(_file_path)]
Text = Annotated[str, AfterValidator(_not_blank)]
UserId = Annotated[str, AfterValidator(_user_id)]
UserPattern = Annotated[str, AfterValidator(_user_pattern)]
RoomId = Annotated[str, AfterValidator(_room_id)]
SledId = Annotated[str, AfterValidator(_sled_id)]
PersonaName = Annotated[str, AfterValidator(_sled_id)]
Host = Annotated[str, AfterValidator(_host)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Duration = Annotated[timedelta, BeforeValidator(_duration)]
PositiveDuration = Annotated[Duration, AfterValidator(_positive)]
Whole = Annotated[int, BeforeValidator(_no_boolean)]
Port = Annotated[Whole, Field(ge=0, le=65535)]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
HeaderSecret = Annotated[SecretStr, AfterValidator(_header_secret)]
WebhookSecret = Annotated[SecretStr, AfterValidator(_webhook_secret)]
JmesPath = Annotated[str, AfterValidator(_jmespath)]
