from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bot.demo.voice import DEFAULT_BASE_URL, Voice, read_voice
from bot.errors import ConfigError


def voice(model: str | None = None, base_url: str | None = None, api_key_file: Path | None = None) -> Voice:
    return read_voice(argparse.Namespace(model=model, base_url=base_url, api_key_file=api_key_file))


def test_without_a_model_the_digest_answers() -> None:
    assert voice().llm.provider == "digest"
    assert "--model NAME" in voice().introduction


def test_a_model_is_looked_for_on_this_machine_unless_told_otherwise(tmp_path: Path) -> None:
    assert voice("tiny").llm.base_url == DEFAULT_BASE_URL
    (tmp_path / "key").write_text("s3cret\n")
    told = voice("tiny", "https://models.example.org/v1", tmp_path / "key")
    assert told.llm.base_url == "https://models.example.org/v1"
    assert told.llm.api_key is not None
    assert told.llm.api_key.get_secret_value() == "s3cret"
    assert told.introduction == "It answers with tiny."
    assert told.reply_within_s > told.llm.timeout.total_seconds()


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        voice("tiny", "ftp://models", tmp_path / "none")
    assert [problem.split()[0] for problem in caught.value.problems] == ["llm.api_key_file", "llm.base_url"]


def test_a_server_without_a_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--base-url is given without --model NAME"):
        voice(base_url="https://models.example.org/v1")
