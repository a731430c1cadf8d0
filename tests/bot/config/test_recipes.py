"""The recipes for models in the documents are what the configuration takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bot.config.minimal import MATRIX, load

REPOSITORY = Path(__file__).parents[3]
RECIPES = dict(
    re.findall(r"^\*\*(.+?)\*\*.*?^```toml\n(.*?)^```", (REPOSITORY / "docs/models.md").read_text(), re.M | re.S)
)


def test_all_seven_have_a_recipe() -> None:
    assert list(RECIPES) == ["Ollama", "vLLM", "llama.cpp", "LM Studio", "OpenRouter", "OpenAI", "Anthropic"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid_and_the_example_names_the_same_model(tmp_path: Path, name: str) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/llm-key").write_text("sk-1")
    llm = load(tmp_path, MATRIX + RECIPES[name]).llm
    example = (REPOSITORY / "config.example.toml").read_text()
    [line] = [line for line in example.splitlines() if line.startswith(f"#   {name} ")]
    assert f'model = "{llm.model}"' in line
    assert llm.base_url is None or f'base_url = "{llm.base_url}"' in line
    assert ("api_key" in line) == (llm.api_key is not None)
