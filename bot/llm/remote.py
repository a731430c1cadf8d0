"""What the providers behind an HTTP API have in common: every request is bounded, every failure is a `ModelFailed`.

pydantic-ai speaks the protocols. It is given our messages unchanged, and what it raises is translated here. A provider
adds its client and what is particular to its protocol.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlsplit

import structlog
from pydantic_ai import exceptions as pai
from pydantic_ai.direct import model_request
from pydantic_ai.messages import ModelMessage as WireMessage
from pydantic_ai.messages import ModelRequest, ModelResponse, SystemPromptPart, TextPart, UserPromptPart
from pydantic_ai.models import Model as WireModel
from pydantic_ai.settings import ModelSettings, merge_model_settings

from bot.llm.port import FailureKind, ModelFailed, Reply, clean_reply
from bot.llm.retry import Patience, persist
from bot.prompt import ModelMessage

log = structlog.get_logger(__name__)

CHECK_TIMEOUT_SECONDS: Final = 5.0
"""For all of it: a server may answer one byte at a time."""
NO_KEY: Final = "no-key"
"""Sent where no key is configured: a client without one would take a key from the environment."""
_MODELS_NAMED: Final = 10
_LONGEST_QUOTE: Final = 200
_CODE: Final = re.compile(r"[A-Za-z_]{1,50}")

_THOUGHTS: Final = re.compile(r"\A(?:\s*<think>.*?(?:</think>|\Z))+", re.DOTALL)
# Some chat templates open the block in the prompt, so that the reply only closes it: on a line of its own, or before a
# blank one. A tag that stands otherwise is one that the reply speaks of.
_THOUGHTS_OPENED_IN_PROMPT: Final = re.compile(
    r"\A.*?(?:^[ \t]*</think>[ \t]*(?:\n|\Z)|</think>[ \t]*\n[ \t]*(?:\n|\Z))", re.DOTALL | re.MULTILINE
)

_OVERFLOW: Final = re.compile(
    r"context.{0,20}(size|length|window|limit)|too many tokens|prompt is too long|maximum prompt length"
    r"|maximum number of tokens",
    re.IGNORECASE,
)

# Order matters: the first class that fits decides. kind, transient, what to do next.
_FAILURES: Final[tuple[tuple[type[pai.ModelAPIError], FailureKind, bool, str], ...]] = (
    (pai.ModelRequestTimeout, "timeout", True, "raise llm.timeout if the model is slow"),
    (pai.ModelTimeoutError, "timeout", True, "raise llm.timeout if the model is slow"),
    (pai.ModelConnectionError, "unreachable", True, "check that the server runs and that llm.base_url is right"),
    (pai.ModelQuotaExceededError, "rate_limited", False, "the account's quota is used up; see the provider's billing"),
    (pai.ModelRateLimitError, "rate_limited", True, "it asks for fewer requests; try again later"),
    (pai.ModelUnavailableError, "server_error", True, "try again later; see the server's log"),
    (pai.ModelServerError, "server_error", True, "try again later; see the server's log"),
    (pai.ModelAuthenticationError, "unauthorised", False, "check llm.api_key"),
    (pai.ModelNotFoundError, "unknown_model", False, "check llm.model and llm.base_url"),
    (pai.ModelContextWindowExceededError, "context_overflow", False, "set llm.context_tokens to what the model has"),
    (pai.ModelRequestRejectedError, "bad_request", False, "check llm.model and the server's log"),
)


@dataclass(frozen=True, slots=True)
class Sdk:
    """A vendor's own client, for what pydantic-ai has no call for: looking at models, and closing.

    The clients are generated alike but share no type. `refused` has a `status_code`; `models` is the path of the list.
    """

    client: Any
    refused: Any
    unreachable: Any
    models: str


class RemoteModel:
    """One model at one server.

    `timeout` bounds each attempt (seconds, from connecting to the reply's last byte). `special` holds the settings that
    not all protocols have.
    """

    def __init__(
        self,
        model: WireModel,
        sdk: Sdk,
        *,
        base_url: str,
        api_key: str | None,
        timeout: float,
        max_reply_tokens: int,
        special: ModelSettings | None,
        patience: Patience | None,
    ) -> None:
        self._model = model
        self._sdk = sdk
        self._name = model.model_name
        self._server = _without_credentials(base_url)
        self._secret = api_key or ""
        self._max_reply_tokens = max_reply_tokens
        self._patience = patience or Patience(total_seconds=2 * timeout)
        # request_timeout bounds the whole attempt; timeout alone would let a server drip one byte at a time.
        settings = ModelSettings(max_tokens=max_reply_tokens, timeout=timeout, request_timeout=timeout, max_retries=0)
        self._settings = merge_model_settings(settings, special)

    async def reply(self, messages: Sequence[ModelMessage]) -> Reply:
        """Answer a conversation, trying again where that may help (see `Patience`).

        Raises:
            ModelFailed: no reply came.
        """
        wire = [_wire_message(message) for message in messages]
        return await persist(lambda: self._attempt(wire), self._patience)

    async def _attempt(self, wire: Sequence[WireMessage]) -> Reply:
        try:
            response = await model_request(self._model, wire, model_settings=self._settings, instrument=False)
            raw = "".join(part.content for part in response.parts if isinstance(part, TextPart))
        except pai.ModelAPIError as error:
            raise self._failure(error) from error
        except Exception as error:  # the SDK doesn't validate bodies: a malformed one raises whatever it trips over
            log.warning("model_answer_malformed", server=self._server, problem=type(error).__name__)
            raise self._no_completion() from error
        return self._read(response, raw)

    def _read(self, response: ModelResponse, raw: str) -> Reply:
        text = clean_reply(_without_reasoning(raw))
        if not text:
            raise self._silence(response.finish_reason)
        usage = response.usage
        return Reply(
            text,
            usage.input_tokens or None,
            usage.output_tokens or None,
            unfinished=response.finish_reason == "length",
        )

    def _silence(self, finish_reason: str | None) -> ModelFailed:
        if finish_reason == "content_filter":
            return self._failed("refused", "declined to answer; its content filter or the model itself refused")
        if finish_reason == "length":
            spent = f"spent all {self._max_reply_tokens} tokens before it answered; raise llm.max_reply_tokens"
            return self._failed("empty_reply", spent)
        return self._failed("empty_reply", "gave an empty reply; ask again, or try another model")

    def _failure(self, error: pai.ModelAPIError) -> ModelFailed:
        status = error.status_code if isinstance(error, pai.ModelHTTPError) else None
        words = self._hidden(_words_of(error.body))
        log.debug("model_refused", server=self._server, status=status, words=words)
        answered = f"answered {status} {_code_in(error.body)}".rstrip() if status else ""
        for category, kind, transient, advice in _FAILURES:
            if not isinstance(error, category):
                continue
            if kind in ("bad_request", "server_error") and _OVERFLOW.search(words):
                overflown = f"{answered}; set llm.context_tokens to what the model has"
                return self._failed("context_overflow", overflown, words=words)
            what = answered or {"timeout": "gave no reply in time", "unreachable": "can't be reached"}.get(
                kind, "failed"
            )
            return self._failed(kind, f"{what}; {advice}", error.retry_after, transient, words)
        if status is None:
            return self._no_completion()
        if status == 408:  # a gateway's word for a model behind it that took too long
            return self._failed("timeout", f"{answered}; try again later", error.retry_after, True, words)
        return self._failed("bad_request", f"{answered}; check llm.base_url and the server's log", words=words)

    def _no_completion(self) -> ModelFailed:
        return self._failed("server_error", "answered something that is no chat completion; check llm.base_url")

    def _failed(
        self,
        kind: FailureKind,
        what: str,
        retry_after: float | None = None,
        transient: bool = False,
        words: str = "",
    ) -> ModelFailed:
        detail = self._hidden(f"model {self._name!r} at {self._server} {what}")
        return ModelFailed(kind, detail, retry_after=retry_after, transient=transient, words=words)

    def _hidden(self, text: str) -> str:
        return text.replace(self._secret, "(hidden)") if self._secret else text

    async def check(self) -> None:
        """Ask the server for the model, else for its list. A server that is down, or keeps none, is only logged.

        Raises:
            ModelFailed: "unknown_model" or "unauthorised".
        """
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                if await self._is_shown():
                    return
                names = _names_in(await self._get(self._sdk.models))
        except self._sdk.refused as error:
            if error.status_code in (401, 403):
                refused = f"answered {error.status_code}; check llm.api_key"
                raise self._failed("unauthorised", refused) from error
            log.warning("model_check_impossible", server=self._server, status=error.status_code)
            return
        except (self._sdk.unreachable, TimeoutError) as error:
            log.warning("model_unreachable", server=self._server, model=self._name, problem=type(error).__name__)
            return
        if names is None:
            log.warning("model_check_impossible", server=self._server, problem="no list of models")
        elif not _knows(names, self._name):
            raise self._failed("unknown_model", _what_is_there(names))

    async def _is_shown(self) -> bool:
        """Whether the server tells of this one model. Lists may be paged, and leave out aliases and what is hidden."""
        try:
            found = await self._get(f"{self._sdk.models}/{quote(self._name, safe='')}")
        except self._sdk.refused as error:
            if error.status_code in (401, 403):
                raise
            return False
        return isinstance(found, dict) and "id" in found

    async def _get(self, path: str) -> object:
        """Get a JSON document; whatever else the server answers with is text, or `None`."""
        client = self._sdk.client.with_options(max_retries=0, timeout=CHECK_TIMEOUT_SECONDS)
        try:
            document: object = await client.get(path, cast_to=object)
        except (ValueError, RecursionError):  # no JSON, no UTF-8, a number too long, or nested too deep
            return None
        return document

    async def aclose(self) -> None:
        """Close the connections to the server."""
        await self._sdk.client.close()


def _wire_message(message: ModelMessage) -> WireMessage:
    if message.role == "assistant":
        return ModelResponse(parts=[TextPart(message.content)])
    part = SystemPromptPart if message.role == "system" else UserPromptPart
    return ModelRequest(parts=[part(message.content)])


def _without_reasoning(text: str) -> str:
    if "</think>" in text and "<think>" not in text:
        return _THOUGHTS_OPENED_IN_PROMPT.sub("", text, count=1)
    return _THOUGHTS.sub("", text, count=1)


def _words_of(body: object) -> str:
    """The server's own explanation, one short line, which may echo what people wrote. Gemini sends a list of one."""
    if isinstance(body, list) and body:
        body = body[0]
    if isinstance(body, dict):
        inner = body.get("error", body)
        body = inner.get("message") if isinstance(inner, dict) else inner
    words = " ".join(body.split()) if isinstance(body, str) and not body.lstrip().startswith("<") else ""
    return words[:_LONGEST_QUOTE]


def _code_in(body: object) -> str:
    """The server's name for what went wrong, in brackets."""
    inner = body.get("error", body) if isinstance(body, dict) else None
    found = [inner.get("code"), inner.get("type")] if isinstance(inner, dict) else []
    code = next((each for each in found if isinstance(each, str) and _CODE.fullmatch(each)), None)
    return f"({code})" if code else ""


def _names_in(listing: object) -> list[str] | None:
    """The model ids of a list's answer; `None` where it is no such list. Ollama without models says `null`."""
    if not isinstance(listing, dict) or "data" not in listing:
        return None
    data = [] if listing["data"] is None else listing["data"]
    if not isinstance(data, list):
        return None
    return [item["id"] for item in data if isinstance(item, dict) and isinstance(item.get("id"), str)]


def _knows(names: Sequence[str], name: str) -> bool:
    """Whether a list holds a model; Ollama lists `name` as `name:latest`."""
    return bool({name, f"{name}:latest", name.removesuffix(":latest")} & set(names))


def _what_is_there(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MODELS_NAMED]) or "none"
    more = f" and {len(names) - _MODELS_NAMED} more" if len(names) > _MODELS_NAMED else ""
    return (
        f"is unknown to the server. Available: {shown}{more}. "
        "Set llm.model to one of them, or llm.check_model = false to skip this check"
    )


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
