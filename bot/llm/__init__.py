"""Language models behind one small port; each provider in its own file, loaded only when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, assert_never

from bot.errors import MusherError
from bot.llm.port import FailureKind, Model, ModelFailed, Provider, Reply
from bot.llm.retry import Patience

if TYPE_CHECKING:
    from bot.llm.anthropic import AnthropicModel

__all__ = [
    "FailureKind",
    "Model",
    "ModelFailed",
    "Patience",
    "Provider",
    "ProviderName",
    "ProviderNotInstalled",
    "Reply",
    "build_model",
]

ProviderName = Literal["openai", "anthropic", "digest"]


class ProviderNotInstalled(MusherError):
    """The configured provider needs a package that comes only with an extra of Musher."""

    def __init__(self, provider: ProviderName) -> None:
        super().__init__(
            f'llm.provider = "{provider}" needs a package that is not installed: install Musher with its extra '
            f'{provider}, with "uv sync --extra {provider}" or "pip install \'.[{provider}]\'" in Musher\'s folder'
        )


def build_model(
    provider: ProviderName,
    *,
    base_url: str = "",
    model: str = "",
    api_key: str | None = None,
    timeout: float = 120.0,
    max_reply_tokens: int = 1024,
    temperature: float | None = None,
    patience: Patience | None = None,
) -> Provider:
    """Make the provider that the config names.

    `timeout` is for one request, in seconds. `temperature=None` leaves the choice to the server, as `anthropic` always
    does; `patience=None` makes the usual retries. `digest` needs and uses nothing but its name. Providers are imported
    here, when asked for: the client of `openai` takes 1.5 s to load.

    Raises:
        ProviderNotInstalled: the provider's extra is missing.
    """
    match provider:
        case "digest":
            from bot.llm.digest import DigestModel

            return DigestModel()
        case "openai":
            from bot.llm.openai import OpenAIModel

            return OpenAIModel(
                base_url=base_url,
                model=model,
                api_key=api_key,
                timeout=timeout,
                max_reply_tokens=max_reply_tokens,
                temperature=temperature,
                patience=patience,
            )
        case "anthropic":
            return _anthropic_model()(
                base_url=base_url,
                model=model,
                api_key=api_key,
                timeout=timeout,
                max_reply_tokens=max_reply_tokens,
                patience=patience,
            )
    assert_never(provider)


def _anthropic_model() -> type[AnthropicModel]:
    try:
        from bot.llm.anthropic import AnthropicModel
    except ModuleNotFoundError as error:
        if error.name != "anthropic":
            raise
        raise ProviderNotInstalled("anthropic") from error
    return AnthropicModel
