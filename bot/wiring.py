"""What the configuration means to the parts: shared by the service and by `musher check --online`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from bot.config import Config, LlmConfig
from bot.llm import Patience, Provider, build_model
from bot.matrix import Credentials, EncryptionSettings, Identity

USER_ID: Final = "matrix_user_id"
DEVICE_ID: Final = "matrix_device_id"
ACCESS_TOKEN: Final = "matrix_access_token"
"""The settings in the store that keep the bot's one login."""


def credentials(config: Config) -> Credentials:
    """The account that the bot logs in with."""
    matrix = config.matrix
    return Credentials(
        homeserver=matrix.homeserver,
        user_id=matrix.user_id,
        password=matrix.password.get_secret_value() if matrix.password else None,
        access_token=matrix.access_token.get_secret_value() if matrix.access_token else None,
        device_id=matrix.device_id,
    )


def encryption(config: Config) -> EncryptionSettings:
    """How the bot keeps its encryption keys, and whose messages it keeps until it can read them."""
    matrix = config.matrix
    return EncryptionSettings(
        beside=config.store.path,
        pickle_key=matrix.pickle_key.get_secret_value() if matrix.pickle_key else None,
        password=matrix.password.get_secret_value() if matrix.password else None,
        admins=frozenset(matrix.admins),
        allows=matrix.allows,
    )


async def stored_login(read_setting: Callable[[str], Awaitable[str | None]]) -> Identity | None:
    """The login that an earlier start stored, if there was one."""
    user_id, device_id, token = [await read_setting(name) for name in (USER_ID, DEVICE_ID, ACCESS_TOKEN)]
    return Identity(user_id, device_id, token) if user_id and device_id and token else None


def language_model(
    llm: LlmConfig, *, max_reply_tokens: int | None = None, patience: Patience | None = None
) -> Provider:
    """The configured model; what is given here goes over the configuration.

    Raises:
        ProviderNotInstalled: the provider's extra is missing.
    """
    return build_model(
        llm.provider,
        base_url=llm.base_url or "",
        model=llm.model or "",
        api_key=llm.api_key.get_secret_value() if llm.api_key else None,
        timeout=llm.timeout.total_seconds(),
        max_reply_tokens=max_reply_tokens or llm.max_reply_tokens,
        temperature=llm.temperature,
        patience=patience,
    )
