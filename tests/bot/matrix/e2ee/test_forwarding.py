"""A key that was lost on its way is sent again by the client that made it, when the bot asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bot.demo.homeserver import Homeserver
from tests.bot.matrix.e2ee.conftest import Bot
from tests.bot.matrix.e2ee.test_pending import HeldBack, until_waiting
from tests.fetch import matrix_js_sdk
from tests.servers.js import JsPerson
from tests.servers.synapse import PASSWORD

_NO_JS = matrix_js_sdk.missing()


@pytest.mark.skipif(_NO_JS is not None, reason=_NO_JS or "")
async def test_a_lost_key_is_asked_for_and_the_message_read(
    bot: Bot, synapse: Homeserver, unique: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = unique("alice")
    await synapse.register(name, PASSWORD)
    async with JsPerson.logged_in(synapse.url, name, PASSWORD, only_signed=False) as alice:
        room: Any = (await alice.do("create", invite=[bot.user_id]))["room"]
        while not bot.batches or room not in bot.batches[-1].joined:
            await bot.sync(500)
        await alice.until_member(room, bot.user_id)
        held_back = HeldBack(bot, monkeypatch)
        await alice.do("say", room=room, text="lost on its way")
        await until_waiting(bot, 1)
        held_back.events.clear()
        held_back.holds = False
        await bot.until_heard("lost on its way")
