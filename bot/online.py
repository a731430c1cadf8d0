"""Tries what the service will need from others: the homeserver, the login, the model. For `musher check --online`.

It changes nothing that lasts, and runs beside the service: the database is only read, without its lock. A login that
is stored or configured as a token is asked who it is. Only where there is none that works, the password is tried, on a
device of its own that is logged out at once. The model is asked for a few tokens.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Literal

from bot.config import Config, LlmConfig
from bot.errors import MusherError
from bot.llm import ModelFailed, Patience, Provider
from bot.matrix import Identity, MatrixClient, MatrixError
from bot.prompt import ModelMessage
from bot.wiring import credentials, language_model, stored_login
from crdt import CrdtError, StoreReader

REPLY_TOKENS: Final = 16
"""Enough for a word, and the least that all of OpenAI's models take."""
_QUESTION: Final = (
    ModelMessage("system", "You are being tested. Answer with one word."),
    ModelMessage("user", "<@check:musher>: Are you there?"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one trial; `words` say what works, or what does not and what to do next."""

    part: Literal["homeserver", "database", "login", "model"]
    works: bool
    words: str


async def try_out(config: Config) -> AsyncIterator[Finding]:
    """Try one part after the other and tell of each at once. The database is told of only where it can't be read."""
    client = MatrixClient(credentials(config))
    try:
        homeserver = await _try_homeserver(client, config.matrix.homeserver)
        yield homeserver
        stored, unreadable = await _read_login(config)
        if unreadable is not None:
            yield unreadable
        if homeserver.works:
            yield await _try_login(client, stored)
        else:
            yield Finding("login", False, "not tried, since the homeserver can't be used")
    finally:
        await client.close()
    yield await _try_model(config.llm)


async def _try_homeserver(client: MatrixClient, address: str) -> Finding:
    try:
        versions = await client.check_homeserver()
    except MatrixError as error:
        return Finding("homeserver", False, str(error))
    newest = f" up to {max(versions, key=_numbers)}" if versions else ""
    return Finding("homeserver", True, f"{address} speaks Matrix{newest}")


def _numbers(version: str) -> list[int]:
    """Of `v1.15`, or `r0.6.1` as the versions before 1.1 are called."""
    return [int(number) for number in re.findall(r"[0-9]+", version)]


async def _read_login(config: Config) -> tuple[Identity | None, Finding | None]:
    path = config.store.path
    try:
        if not path.exists():
            return None, None
        async with StoreReader.open(path) as reader:
            return await stored_login(reader.read_setting), None
    except CrdtError as error:
        return None, Finding("database", False, str(error))
    except OSError as error:
        return None, Finding(
            "database", False, f"{path}: {error.strerror}; let Musher's user read and write its folder"
        )


async def _try_login(client: MatrixClient, stored: Identity | None) -> Finding:
    try:
        tried = await client.try_login(stored)
    except MatrixError as error:
        return Finding("login", False, str(error))
    if not tried.by_password:
        return Finding("login", True, f"{client.user_id} is logged in, as the device {tried.device_id}")
    ended = "" if stored is None else f"; the login of the device {stored.device_id} has ended and will be made anew"
    return Finding("login", True, f"{client.user_id} can log in by password (tried and logged out again){ended}")


async def _try_model(llm: LlmConfig) -> Finding:
    if llm.provider == "digest":
        return Finding("model", True, "none is needed: digest reports the events by itself")
    once = Patience(total_seconds=0.0, attempts=1)
    try:
        model = language_model(llm, max_reply_tokens=REPLY_TOKENS, patience=once)
    except MusherError as error:
        return Finding("model", False, str(error))
    try:
        return Finding("model", True, f"{llm.model} {await _ask(model, check=llm.check_model)}")
    except ModelFailed as failure:
        said = f" (it says: {failure.words})" if failure.words else ""  # quotes our own question at most
        return Finding("model", False, failure.detail + said)
    finally:
        await model.aclose()


async def _ask(model: Provider, *, check: bool) -> str:
    if check:
        await model.check()
    began = time.monotonic()
    try:
        await model.reply(_QUESTION)
    except ModelFailed as failure:
        # A model that reasons first may spend these few tokens on that; with llm.max_reply_tokens it gets further.
        if failure.kind != "empty_reply":
            raise
        return f"took the question, but had no words for it within {REPLY_TOKENS} tokens"
    return f"answered in {time.monotonic() - began:.1f} s"
