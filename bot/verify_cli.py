"""`musher verify-status`: what people's clients see when they ask whether to trust the bot. Runs beside the service."""

# ruff: noqa: T201 - printing is what commands do.

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING, Final

from bot.errors import MusherError

if TYPE_CHECKING:
    from bot.config import Config
    from bot.matrix import SeenKeys

EXIT_NOT_TRUSTED: Final = 1
_BLOCK: Final = 4


class NeverStarted(MusherError):
    """There is no login yet whose keys could be asked for."""

    def __init__(self, path: object) -> None:
        super().__init__(f"{path} holds no login: start Musher once with 'musher run', which makes its device and keys")


class NotAnswered(MusherError):
    """The homeserver gave no answer about the keys."""

    def __init__(self, homeserver: str, problem: str) -> None:
        super().__init__(
            f"{homeserver} gave no answer about the bot's keys: {problem}; "
            "check matrix.homeserver and that the server is up, then ask again"
        )


def show_verify_status(arguments: argparse.Namespace) -> int:
    """Print the state of the bot's keys as the homeserver shows it; 0 if its device is cross-signed."""
    from bot.config import load_config
    from bot.logs import configure_logging

    configure_logging("console", "error")
    seen = asyncio.run(_ask(load_config(arguments.config)))
    print("\n".join(_lines(seen)))
    return 0 if seen.trusted else EXIT_NOT_TRUSTED


async def _ask(config: Config) -> SeenKeys:
    from bot.matrix import MatrixClient, Unreachable
    from bot.wiring import credentials, stored_login
    from crdt import StoreReader

    async with StoreReader.open(config.store.path) as reader:
        stored = await stored_login(reader.read_setting)
    if stored is None:
        raise NeverStarted(config.store.path)
    client = MatrixClient(credentials(config))
    try:
        return await client.seen_keys(stored)
    except Unreachable as error:
        raise NotAnswered(error.homeserver, error.problem) from error
    finally:
        await client.close()


def _lines(seen: SeenKeys) -> list[str]:
    device = "signed by that identity" if seen.device_is_signed else "not signed: some clients will not talk with it"
    if seen.device_key is None:
        device = "has no keys at the homeserver: start Musher"
    identity = "whole" if seen.identity_is_whole else "there is none, or only a part: start Musher with matrix.password"
    others = "a device that its owner vouches for" if seen.trusted else "a device that nobody vouches for"
    return [
        f"user           {seen.user_id}",
        f"identity       {identity}",
        f"identity key   {_blocks(seen.master_key)}",
        f"device         {seen.device_id}, {device}",
        f"device key     {_blocks(seen.device_key)}",
        f"others see     {others}",
    ]


def _blocks(key: str | None) -> str:
    """A key as clients show it for comparing."""
    if key is None:
        return "none"
    return " ".join(key[start : start + _BLOCK] for start in range(0, len(key), _BLOCK))
