"""Everything that the bot says by itself."""

from __future__ import annotations

from typing import Final

from bot.llm import FailureKind

_RETRY: Final = "The pipeline events are kept: write again and I will go on from here."

_BY_FAILURE: Final[dict[FailureKind, str]] = {
    "unreachable": "I could not reach the language model.",
    "timeout": "The language model took too long to answer.",
    "rate_limited": "The language model is receiving too many requests at the moment.",
    "unauthorised": "The language model refused my key; whoever runs me has to check `llm.api_key`.",
    "unknown_model": "The configured language model does not exist on its server; whoever runs me has to check "
    "`llm.model`.",
    "context_overflow": "This conversation is too long for the language model; whoever runs me has to check "
    "`llm.context_tokens`.",
    "refused": "The language model refused to answer this.",
    "bad_request": "The language model did not accept my request; my log says more.",
    "server_error": "The language model had an internal error.",
    "empty_reply": "The language model gave an empty answer.",
}

UNEXPECTED: Final = f"Something went wrong inside of me while I was answering; my log says more. {_RETRY}"
UNREAD: Final = (
    "Something went wrong inside of me while I was reading what was said here, so I may have missed a message; "
    "my log says more. Please say it again, perhaps in other words."
)
UNSENT: Final = "Something went wrong inside of me while I was sending my reply, so it is lost; my log says more."
UNFINISHED: Final = "(This reply has reached its greatest length and may end too early: ask me to go on.)"
CUT: Final = "(The reply went on for much longer; I cut it here.)"
POISONED: Final = (
    "I was interrupted three times while answering this, so I stopped trying. "
    "The pipeline events are kept: write again, perhaps in other words."
)
UNREADABLE: Final = (
    "I could not decrypt this message: its key has not reached me. I have asked your client for it and will answer "
    "once it comes; if it does not, please send the message again."
)


def failure_notice(kind: FailureKind) -> str:
    """Say that no answer came, why, and what a person can do."""
    return f"{_BY_FAILURE[kind]} {_RETRY}"


DAMAGED: Final = (
    "I can't answer here at present: what I had stored about this room is damaged. "
    "Please tell whoever runs me; the details are in my log."
)
