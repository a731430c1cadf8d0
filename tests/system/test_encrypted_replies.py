"""Long replies in encrypted rooms, through the whole service, as the clients of others show them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from bot.demo.homeserver import Homeserver
from tests.bot.matrix.e2ee.nio_person import ALGORITHM, NioPerson
from tests.servers.model import Reply, ScriptedModel
from tests.system.service import MusherProcess
from tests.system.test_encrypted import NO_SHIELD, js_person, with_js

LONG: Final = 60.0
_SIZE: Final = 200_000

REPLIES: Final = {
    "paragraphs": "Step #: the **gate** `lint` of [42](https://e.org) passed, says Zoë.\n\n- one\n- two\n\n",
    "other scripts": "Привет, мир # 🐕. 文字の列。\n\n",
    "one line": "x#",
    "code": "```py\nx = #\n\ny = 2\n```\n\n",
    "markup": "**#** _b_ `c` <&> [d](https://e.org/?a=1&b=2)\n",
}
"""What is said over and over, with its number for `#`."""


def reply_of(kind: str) -> str:
    """About 200 kB of UTF-8."""
    unit = REPLIES[kind]
    return "".join(unit.replace("#", str(number)) for number in range(_SIZE // (len(unit.encode()) + 3)))


def dense(*texts: str) -> str:
    return "".join("".join(texts).split())


@pytest.mark.parametrize("kind", REPLIES)
async def test_a_reply_of_200_kb_arrives_whole_and_in_order(
    musher: MusherProcess, model: ScriptedModel, synapse: Homeserver, unique: Any, tmp_path: Path, kind: str
) -> None:
    async with NioPerson.on(synapse, unique("alice"), tmp_path / "alice") as alice:
        room = await alice.create_room(musher.user_id)
        await alice.until_member(room, musher.user_id)
        reply = reply_of(kind)
        model.script(Reply(reply))
        await alice.say(room, "tell me all")
        await alice.until(lambda: len(dense(*(each.body for each in alice.heard))) >= len(dense(reply)), LONG)
        assert dense(*(each.body for each in alice.heard)) == dense(reply)
        assert all(each.decrypted for each in alice.heard)


@with_js
async def test_a_reply_of_200_kb_is_whole_and_in_order_for_another_client(
    musher: MusherProcess, model: ScriptedModel, synapse: Homeserver, unique: Callable[[str], str]
) -> None:
    async with js_person(synapse, unique("alice"), only_signed=True) as alice:
        room = (await alice.do("create", invite=[musher.user_id]))["room"]
        await alice.until_member(room, musher.user_id)
        reply = reply_of("markup")
        model.script(Reply(reply))
        await alice.do("say", room=room, text="tell me all")
        heard = await alice.until(
            lambda heard: len(dense(*(each["heard"] for each in heard))) >= len(dense(reply)) and heard, LONG
        )
        assert dense(*(each["heard"] for each in heard)) == dense(reply)
        assert {each["shield"] for each in heard} == {NO_SHIELD}


async def test_a_reply_that_waits_while_its_room_becomes_encrypted_arrives_encrypted(
    musher: MusherProcess, model: ScriptedModel, synapse: Homeserver, unique: Callable[[str], str], tmp_path: Path
) -> None:
    async with NioPerson.on(synapse, unique("alice"), tmp_path / "alice") as alice:
        room = await alice.create_room(musher.user_id, encrypted=False)
        await alice.until_member(room, musher.user_id)
        await musher.stop()
        await musher.start(pause_at="complete")
        reply = "secret " * 8_000
        model.script(Reply(reply))
        await alice.say(room, "tell me all")
        await musher.wait_until_paused("complete")
        await alice.client.room_put_state(room, "m.room.encryption", ALGORITHM)
        await musher.kill()
        musher.resume("complete")
        await musher.start()
        await alice.until(lambda: len(dense(*(each.body for each in alice.heard))) >= len(dense(reply)), LONG)
        assert dense(*(each.body for each in alice.heard)) == dense(reply)
        kinds = {each["type"] for each in await alice.history(room) if each["sender"] == musher.user_id}
        assert kinds == {"m.room.member", "m.room.encrypted"}
