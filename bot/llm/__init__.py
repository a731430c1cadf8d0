"""Language models behind one small port; each provider in its own file, loaded only when it is asked for."""

from __future__ import annotations

from typing import Literal, assert_never

from bot.llm.port import FailureKind, Model, ModelFailed, Provider, Reply

__all__ = ["FailureKind", "Model", "ModelFailed", "Provider", "ProviderName", "Reply", "build_model"]

ProviderName = Literal["openai", "digest"]


def build_model(
    provider: ProviderName,
    *,
    base_url: str = "",
    model: str = "",
    api_key: str | None = None,
    timeout: float = 120.0,
    max_reply_tokens: int = 1024,
    temperature: float | None = None,
) -> Provider:
    """Make the provider that the config names.

    `timeout` is for one request, in seconds. `temperature=None` leaves the choice to the server. `digest` needs and
    uses nothing but its name. Providers are imported here, when asked for: the client of `openai` takes 1.5 s to load.
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
            )
    assert_never(provider)
