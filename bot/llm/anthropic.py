"""The provider for Anthropic's Messages API: Claude itself, and servers that speak its protocol.

Needs Musher's extra `anthropic`. The persona is the request's `system`; the cache is marked after it and after the
newest message, which both stand unchanged in the next turn's request.
"""

from __future__ import annotations

from typing import Final

from anthropic import APIConnectionError, APIStatusError
from pydantic_ai.models.anthropic import AnthropicModel as AnthropicWireModel
from pydantic_ai.models.anthropic import AnthropicModelSettings
from pydantic_ai.providers.anthropic import AnthropicProvider

from bot.llm.remote import NO_KEY, RemoteModel, Sdk
from bot.llm.retry import Patience

BASE_URL: Final = "https://api.anthropic.com"

# Newer models think unless they are told not to, and their thoughts count as reply: they would spend
# llm.max_reply_tokens before the first word. Those that can't be told so think as little as they can.
_SETTINGS: Final = AnthropicModelSettings(
    thinking=False, anthropic_cache_instructions=True, anthropic_cache_messages=True
)


class AnthropicModel(RemoteModel):
    """One model at one server that speaks Anthropic's protocol; `base_url` with or without `/v1`, empty: Anthropic.

    Neither a key nor an address is ever taken from the environment. There is no temperature: the API refuses every
    request that holds one since its version 2026-10-21.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key: str | None,
        timeout: float,
        max_reply_tokens: int,
        patience: Patience | None = None,
    ) -> None:
        base_url = base_url.rstrip("/").removesuffix("/v1") or BASE_URL
        provider = AnthropicProvider(base_url=base_url, api_key=api_key or NO_KEY)
        super().__init__(
            AnthropicWireModel(model, provider=provider),
            Sdk(provider.client, APIStatusError, APIConnectionError, models="/v1/models"),
            base_url=base_url,
            api_key=api_key,
            timeout=timeout,
            max_reply_tokens=max_reply_tokens,
            special=_SETTINGS,
            patience=patience,
        )
