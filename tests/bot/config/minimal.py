"""The smallest configuration that is valid, and ways to load what is near it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from bot.config import Config, load_config
from bot.errors import ConfigError

MATRIX = """
[matrix]
homeserver = "http://127.0.0.1:8008/"
user_id = "@musher:example.org"
password = "hunter2"
allowed_users = ["@*:example.org"]
"""
DIGEST = '[llm]\nprovider = "digest"\n'
MINIMAL = MATRIX + DIGEST


def load(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> Config:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, environ or {})


def problems(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, environ)
    assert "hunter2" not in str(caught.value)
    return caught.value.problems


def only_problem(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> str:
    (problem,) = problems(folder, text, environ)
    return problem


def insert(text: str) -> str:
    """Put lines below the heading that MINIMAL has already, or add a section of their own."""
    heading, lines = text.split("\n", 1)
    return MINIMAL.replace(heading, f"{heading}\n{lines}") if heading in MINIMAL else f"{MINIMAL}{text}\n"
