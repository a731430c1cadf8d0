"""What is said in encrypted rooms while the bot is down is answered, with keys that were made meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from bot.demo.homeserver import Homeserver
from tests.bot.matrix.e2ee.nio_person import NioPerson
from tests.servers.model import ScriptedModel
from tests.system.outside import all_told
from tests.system.service import MusherProcess

LONG: Final = 60.0


async def test_more_than_a_hundred_messages_of_a_device_that_came_and_went_meanwhile_are_answered(
    musher: MusherProcess, model: ScriptedModel, synapse: Homeserver, unique: Callable[[str], str], tmp_path: Path
) -> None:
    name = unique("alice")
    async with NioPerson.on(synapse, name, tmp_path / "first") as alice:
        room = await alice.create_room(musher.user_id)
        await alice.until_member(room, musher.user_id)
        await musher.stop()
        async with NioPerson.on(synapse, name, tmp_path / "second") as again:
            await again.client.joined_members(room)
            for number in range(120):
                await again.say(room, f"number {number}")
            await again.client.logout()
        await musher.start()
        lines = [f"<{alice.user_id}>: number {number}" for number in range(120)]

        def told() -> list[str]:
            return (
                [line for turn in all_told(model.requests[-1].messages) for line in turn.said] if model.requests else []
            )

        await alice.until(lambda: model.requests and told()[-1:] == lines[-1:], LONG)
        assert told() == lines
        await alice.until(lambda: len(alice.heard) == len(all_told(model.requests[-1].messages)), LONG)
