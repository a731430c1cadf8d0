"""Who answers in the demo: a language model, or the digest, as the command's arguments say."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from bot.config import Config, ConfigError, LlmConfig
from bot.config.problems import describe
from bot.config.secret_files import put_in_secrets

DEFAULT_BASE_URL: Final = "http://127.0.0.1:11434/v1"
"""Where Ollama listens by default."""
_SOURCE: Final = "the command line"
_SLACK_S: Final = 30.0
"""For all but the model: sync, database, sending."""


@dataclass(frozen=True, slots=True)
class Voice:
    """Who answers, and how long that may take."""

    llm: LlmConfig

    @property
    def reply_within_s(self) -> float:
        return _SLACK_S if self.llm.provider == "digest" else self.llm.timeout.total_seconds() + _SLACK_S

    @property
    def introduction(self) -> str:
        """Who answers, in a sentence."""
        if self.llm.provider == "digest":
            return "No language model is used: it reports what happened (--model NAME makes it one)."
        return f"It answers with {self.llm.model}."


def read_voice(arguments: argparse.Namespace) -> Voice:
    """Read `--model`, `--base-url` and `--api-key-file`. Raises `ConfigError` with all that is wrong with them."""
    if arguments.model is None:
        alone = [name for name in ("base_url", "api_key_file") if getattr(arguments, name) is not None]
        if alone:
            raise ConfigError(_SOURCE, [f"--{name.replace('_', '-')} is given without --model NAME" for name in alone])
        return Voice(LlmConfig(provider="digest"))
    llm: dict[str, Any] = {"model": arguments.model, "base_url": arguments.base_url or DEFAULT_BASE_URL}
    if arguments.api_key_file is not None:
        llm["api_key_file"] = str(arguments.api_key_file)
    problems = list(put_in_secrets(Config, {"llm": llm}, Path.cwd()))
    try:
        voice = Voice(LlmConfig.model_validate(llm))
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        problems += [describe({**each, "loc": ("llm", *each["loc"])}, Config, {}) for each in found]
    if problems:
        raise ConfigError(_SOURCE, problems)
    return voice
