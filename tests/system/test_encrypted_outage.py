"""Encrypted rooms while the homeserver itself is restarted, with a question under way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from bot.demo.homeserver import Homeserver
from tests.bot.matrix.e2ee.nio_person import NioPerson
from tests.servers.model import ScriptedModel
from tests.system.service import MusherProcess
from tests.system.test_encrypted import NO_SHIELD, device_of, js_person, replies_of, with_js


@pytest.fixture
async def synapse(tmp_path: Path) -> AsyncIterator[Homeserver]:
    """A Synapse of this test's own, on the disk."""
    async with Homeserver.start(tmp_path / "synapse") as homeserver:
        yield homeserver


async def test_a_question_that_is_under_way_as_the_homeserver_dies_is_answered_once(
    musher: MusherProcess, model: ScriptedModel, synapse: Homeserver, unique: Callable[[str], str], tmp_path: Path
) -> None:
    async with NioPerson.on(synapse, unique("alice"), tmp_path / "alice") as alice:
        room = await alice.create_room(musher.user_id)
        await alice.until_member(room, musher.user_id)
        gate = model.hang()
        await alice.say(room, "one")
        await model.wait_for_requests(1)
        await synapse.kill()
        gate.set()
        await musher.wait_for_log("turn_completed")
        await synapse.restart()
        await alice.until(lambda: alice.heard, 60)
        await alice.say(room, "two")
        await alice.until(lambda: len(alice.heard) == 2, 60)
        assert [each.body for each in alice.heard] == ["reply 1", "reply 2"]
        assert all(each.decrypted for each in alice.heard)
        kinds = [each["type"] for each in await alice.history(room) if each["sender"] == musher.user_id]
        assert sorted(kinds) == ["m.room.encrypted", "m.room.encrypted", "m.room.member"]


@with_js
async def test_another_client_sees_no_shield_after_both_the_homeserver_and_the_bot_were_restarted(
    musher: MusherProcess, synapse: Homeserver, unique: Callable[[str], str]
) -> None:
    async with js_person(synapse, unique("alice"), only_signed=True) as alice:
        room = (await alice.do("create", invite=[musher.user_id]))["room"]
        await alice.until_member(room, musher.user_id)
        await alice.do("say", room=room, text="one")
        await alice.until(lambda heard: len(replies_of(musher, heard)) >= 1)
        device = device_of(musher)
        await musher.stop()
        await alice.do("say", room=room, text="two, while the bot is down")
        await synapse.restart()
        await musher.start()
        await alice.until(lambda heard: len(replies_of(musher, heard)) >= 2, 60)
        await alice.do("say", room=room, text="three")
        heard = await alice.until(lambda heard: len(replies_of(musher, heard)) >= 3 and heard, 60)
        assert [(each["encrypted"], each["shield"], each["msgtype"]) for each in heard] == [
            (True, NO_SHIELD, "m.text")
        ] * 3
        trust = await alice.do("trust", user=musher.user_id, device=device)
        assert trust["devices"] == [device]
        assert trust["signed_by_owner"] is True
