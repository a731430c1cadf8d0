"""The whole chat on a real pseudo-terminal."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from bot.config import LlmConfig
from bot.demo.chat import ScreenMissing, chat
from bot.demo.terminal import Terminal
from bot.demo.voice import Voice
from tests.bot.demo.seat import Seat


def test_a_person_asks_and_is_answered_and_ctrl_c_ends_everything(tmp_path: Path) -> None:
    with Seat("-m", "bot", "demo", folder=tmp_path) as seat:
        introduction = seat.read_until("›")
        assert re.search(r"homeserver +http://127\.0\.0\.1:\d+", introduction)
        assert re.search(r"user +@you:localhost +password +\S+", introduction)
        seat.type("what happened?\r")
        seat.read_until(r"(?s)› what happened\?.*Musher.*So far, 10 things.* • Story 39 .*›.*GatesStarted")
        seat.type("half typed\x03")
        seat.assert_left_in_order()


async def test_a_missing_library_is_named_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    monkeypatch.setattr(Terminal, "can_draw", lambda terminal: True)
    with pytest.raises(ScreenMissing, match=r"needs prompt_toolkit.*uv sync --all-extras.*TERM=dumb"):
        await chat(False, tmp_path, Voice(LlmConfig(provider="digest")), Terminal(on_gone=lambda: None))
