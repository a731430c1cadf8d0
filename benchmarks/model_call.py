"""Row 6's note: what the model SDKs add to a call, with 60 messages of history and a server that answers at once."""

from __future__ import annotations

from pathlib import Path

import aiohttp
from openai import AsyncOpenAI

from benchmarks.figure import Figure, Round, milliseconds, ratio, timed
from bot.llm.openai import OpenAIModel
from bot.prompt import ModelMessage
from tests.servers.model import ScriptedModel

HISTORY = 60
MODEL = "test-model"
_MESSAGES = [
    ModelMessage("user" if turn % 2 == 0 else "assistant", f"word {turn} " * 20) for turn in range(HISTORY - 1)
]
_PLAIN = [{"role": message.role, "content": message.content} for message in _MESSAGES]


async def measure(folder: Path, quick: bool) -> list[Figure]:
    """The note: our provider and the openai SDK, each beside a bare aiohttp request."""
    samples = 20 if quick else 40
    async with (
        ScriptedModel() as server,
        aiohttp.ClientSession() as http,
        AsyncOpenAI(base_url=server.url, api_key="none") as sdk,
    ):
        ours = OpenAIModel(
            base_url=server.url, model=MODEL, api_key=None, timeout=30, max_reply_tokens=100, temperature=None
        )

        async def bare() -> None:
            body = {"model": MODEL, "messages": _PLAIN, "max_tokens": 100}
            async with http.post(f"{server.url}/chat/completions", json=body) as response:
                await response.json()

        async def through_sdk() -> None:
            await sdk.chat.completions.create(model=MODEL, messages=_PLAIN, max_tokens=100)  # type: ignore[arg-type]

        calls = {"Musher's provider": lambda: ours.reply(_MESSAGES), "the openai SDK": through_sdk}
        figures = []
        for name, call in calls.items():
            measured: list[Round] = []
            for _ in range(5):
                took: tuple[list[float], list[float]] = ([], [])
                for _ in range(samples // 5):
                    took[1].append(await timed(bare()))
                    took[0].append(await timed(call()))
                measured.append(took)
            figures.append(ratio("6", f"a model call by {name}", "bare aiohttp request", measured, show=milliseconds))
        await ours.aclose()
    return figures
