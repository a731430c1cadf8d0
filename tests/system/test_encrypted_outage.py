"""Encrypted rooms while the homeserver itself is restarted, with a question under way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from bot.demo.homeserver import Homeserver
from tests.bot.matrix.e2ee.nio_person import NioPerson
from tests.servers.model import ScriptedModel
from tests.system.service import MusherProcess


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
