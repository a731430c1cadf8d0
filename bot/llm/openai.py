"""The provider for every server that speaks OpenAI's chat completions: hosted ones, Ollama, llama.cpp, vLLM.

One deliberate exception to "our messages unchanged": towards servers of open-weight models pydantic-ai puts a
zero-width joiner into chat template tokens that people type (`<|im_end|>`), which else could forge a turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import urlsplit

from openai import APIConnectionError, APIStatusError
from openai.types.chat import ChatCompletion
from pydantic import BaseModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.openai._errors import status_error
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from bot.llm.remote import NO_KEY, RemoteModel, Sdk
from bot.llm.retry import Patience

# pydantic-ai would take an unclosed block for the answer; `bot.llm.remote` knows better, so it gets the raw text.
_TAGS_THAT_NEVER_OCCUR: Final = ("\x00never opened\x00", "\x00never closed\x00")


class OpenAIModel(RemoteModel):
    """One model at one server that speaks OpenAI's protocol; `base_url` goes up to `/v1`.

    Without `api_key` a dummy is sent: local servers ask for none, and a key in the environment is never sent to a
    server it was not meant for.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key: str | None,
        timeout: float,
        max_reply_tokens: int,
        temperature: float | None,
        patience: Patience | None = None,
    ) -> None:
        provider = OpenAIProvider(base_url=base_url, api_key=api_key or NO_KEY)
        super().__init__(
            _ChatModel(model, provider=provider, profile=_profile(base_url)),
            Sdk(provider.client, APIStatusError, APIConnectionError, models="/models"),
            base_url=base_url,
            api_key=api_key,
            timeout=timeout,
            max_reply_tokens=max_reply_tokens,
            special=None if temperature is None else ModelSettings(temperature=temperature),
            patience=patience,
        )


class _ChatModel(OpenAIChatModel):
    """Takes an error inside an answer of status 200 for what it is, as if the answer had had the error's status.

    Gateways such as OpenRouter have sent the status before the model behind them fails.
    """

    def _validate_completion(self, response: ChatCompletion) -> Any:
        for error in _errors_in(response):
            code = error.get("code")
            if isinstance(code, int) and 400 <= code <= 599:
                words = error.get("message")
                raise status_error(
                    self.model_name,
                    "openai",
                    status_code=code,
                    body=error,
                    code=None,
                    error_type=None,
                    message=words if isinstance(words, str) else None,
                )
        return super()._validate_completion(response)


def _errors_in(response: ChatCompletion) -> Iterable[dict[str, Any]]:
    """The errors of the whole answer and of its choice."""
    for part in (response, *(response.choices or ())[:1]):
        error = (part.model_extra or {}).get("error") if isinstance(part, BaseModel) else None
        if isinstance(error, dict):
            yield error


def _profile(base_url: str) -> OpenAIModelProfile:
    """Only OpenAI itself demands `max_completion_tokens`; other servers ignore it and would reply without end."""
    return OpenAIModelProfile(
        openai_chat_supports_max_completion_tokens=urlsplit(base_url).hostname == "api.openai.com",
        thinking_tags=_TAGS_THAT_NEVER_OCCUR,
    )
