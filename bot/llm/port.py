"""The port between a turn and a language model: what goes in, what comes out, and the one way in which it fails."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol
from unicodedata import category

from bot.prompt import ModelMessage

FailureKind = Literal[
    "unreachable",
    "timeout",
    "rate_limited",
    "unauthorised",
    "unknown_model",
    "context_overflow",
    "refused",
    "bad_request",
    "server_error",
    "empty_reply",
]

# Control characters, and surrogates that JSON can smuggle in: neither a homeserver nor the store takes them.
_UNPRINTABLE: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered: Markdown, never empty. The counts are the provider's own, `None` where it gives none.

    `unfinished`: the model had more to say, and was stopped by the limit of its reply or of its context.
    """

    text: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    unfinished: bool = False


class ModelFailed(Exception):
    """No reply came; retries, where they could help, are already spent.

    `detail` is for the log: what happened, to which model, and what to do next; it holds no secret and no message
    text. `transient` tells that the same request may succeed later, `retry_after` (seconds) when, if the provider said.
    `words` are the server's own explanation. They may quote the conversation, and are not for the log.
    """

    def __init__(
        self,
        kind: FailureKind,
        detail: str,
        *,
        retry_after: float | None = None,
        transient: bool = False,
        words: str = "",
    ) -> None:
        self.kind = kind
        self.detail = detail
        self.retry_after = retry_after
        self.transient = transient
        self.words = words
        super().__init__(detail)


class Model(Protocol):
    """What a turn needs of a language model."""

    async def reply(self, messages: Sequence[ModelMessage]) -> Reply:
        """Answer a conversation: one system message, then user and assistant in alternation, a user's last.

        Raises:
            ModelFailed: the only exception of this call, cancellation aside.
        """
        ...


class Provider(Model, Protocol):
    """What the composition root needs besides: a look at the model before the service starts, and the end."""

    async def check(self) -> None:
        """Find out whether the model can answer at all.

        Raises:
            ModelFailed: it certainly can't ("unknown_model", "unauthorised"). What may pass by itself is only logged.
        """
        ...

    async def aclose(self) -> None:
        """Give back connections; the provider is not used afterwards."""
        ...


def clean_reply(text: str) -> str:
    """Take out of a model's text what can't be stored or sent: control characters and lone surrogates.

    A text of which nothing can be seen, being white space and format characters (category Cf), is empty.
    """
    clean = _UNPRINTABLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()
    return clean if any(not (char.isspace() or category(char) == "Cf") for char in clean) else ""
