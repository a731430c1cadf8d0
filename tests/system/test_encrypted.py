"""The whole service in encrypted rooms, judged by two clients of others: nio's own, and matrix-js-sdk."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bot.demo.homeserver import Homeserver
from tests.bot.matrix.e2ee.nio_person import NioPerson
from tests.fetch import matrix_js_sdk
from tests.servers.js import JsPerson
from tests.servers.model import ScriptedModel
from tests.servers.synapse import PASSWORD
from tests.system.conftest import MusherMaker
from tests.system.service import MusherProcess, until

NO_SHIELD, GREY_SHIELD, RED_SHIELD = 0, 1, 2
NO_JS = matrix_js_sdk.missing()
with_js = pytest.mark.skipif(NO_JS is not None, reason=NO_JS or "")


@asynccontextmanager
async def js_person(homeserver: Homeserver, name: str, *, only_signed: bool = False) -> AsyncIterator[JsPerson]:
    await homeserver.register(name, PASSWORD)
    async with JsPerson.logged_in(homeserver.url, name, PASSWORD, only_signed=only_signed) as person:
        yield person


def device_of(musher: MusherProcess) -> str:
    """The device that the service logged in on last."""
    return str([line["device"] for line in musher.logs if line.get("event") == "logged_in"][-1])


def replies_of(musher: MusherProcess, heard: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in heard if each["sender"] == musher.user_id]


@with_js
@pytest.mark.parametrize("only_signed", [False, True], ids=["accepting all devices", "accepting signed devices only"])
async def test_another_client_talks_with_it_before_and_after_a_restart(
    musher: MusherProcess, synapse: Homeserver, unique: Any, only_signed: bool
) -> None:
    async with js_person(synapse, unique("alice"), only_signed=only_signed) as alice:
        room = (await alice.do("create", invite=[musher.user_id]))["room"]
        await alice.until_member(room, musher.user_id)
        await alice.do("say", room=room, text="one")
        await alice.until(lambda heard: len(replies_of(musher, heard)) >= 1)
        await musher.stop()
        await alice.do("say", room=room, text="two, while it is down")
        await musher.start()
        await alice.until(lambda heard: len(replies_of(musher, heard)) >= 2)
        await alice.do("say", room=room, text="three")
        heard = await alice.until(lambda heard: len(replies_of(musher, heard)) >= 3 and heard)
        assert [(each["encrypted"], each["shield"], each["msgtype"]) for each in heard] == [
            (True, NO_SHIELD, "m.text")
        ] * 3
        trust = await alice.do("trust", user=musher.user_id, device=device_of(musher))
        assert trust["devices"] == [device_of(musher)]
        assert trust["signed_by_owner"] is True


@with_js
async def test_an_admin_verifies_it_from_another_client(
    make_musher: MusherMaker, synapse: Homeserver, unique: Any
) -> None:
    async with js_person(synapse, unique("alice"), only_signed=True) as alice:
        musher = await make_musher({"matrix": {"admins": [alice.user_id]}})
        await musher.start()
        room = (await alice.do("create", invite=[musher.user_id]))["room"]
        await alice.until_member(room, musher.user_id)
        await alice.do("say", room=room, text="hello")
        await alice.until(lambda heard: len(replies_of(musher, heard)) == 1)
        shown = await alice.do("verify", user=musher.user_id, device=device_of(musher))
        (told,) = await musher.wait_for_log("verification_compare")
        assert told["numbers"] == "-".join(map(str, shown["numbers"]))
        assert next(word.lower() for word in told["emoji"].split()[1::2]) in json.dumps(shown["emoji"]).lower()
        await alice.do("confirm")
        await musher.wait_for_log("verification_done")

        async def verified() -> bool | None:
            trust = await alice.do("trust", user=musher.user_id, device=device_of(musher))
            return True if trust["user_verified"] and trust["device_verified"] else None

        await until(verified, "the admin's client trusts the bot's identity")


@with_js
async def test_a_lost_key_store_is_no_alarm_for_another_client(
    musher: MusherProcess, synapse: Homeserver, unique: Any
) -> None:
    async with js_person(synapse, unique("alice"), only_signed=True) as alice:
        room = (await alice.do("create", invite=[musher.user_id]))["room"]
        await alice.until_member(room, musher.user_id)
        await alice.do("say", room=room, text="one")
        await alice.until(lambda heard: len(replies_of(musher, heard)) >= 1)
        former = device_of(musher)
        await musher.stop()
        for file in musher.database.parent.glob(f"{musher.database.name}.keys-*"):
            file.unlink()
        await musher.start()
        assert device_of(musher) != former
        await alice.do("say", room=room, text="two")
        heard = await alice.until(lambda heard: len(replies_of(musher, heard)) >= 2 and heard)
        assert [each["shield"] for each in heard] == [NO_SHIELD] * 2


async def test_a_question_in_an_encrypted_room_is_answered_there_and_never_readable(
    musher: MusherProcess, model: ScriptedModel, synapse: Homeserver, unique: Any, tmp_path: Path
) -> None:
    async with NioPerson.on(synapse, unique("alice"), tmp_path / "alice") as alice:
        room = await alice.create_room(musher.user_id)
        await alice.until_member(room, musher.user_id)
        await alice.say(room, "how are things?")
        await alice.until(lambda: len(alice.heard) == 1)
        await musher.kill()
        await alice.say(room, "and now?")
        await musher.start()
        await alice.until(lambda: len(alice.heard) == 2)
        assert all(each.decrypted for each in alice.heard)
        kinds = {each["type"] for each in await alice.history(room) if each["sender"] == musher.user_id}
        assert kinds == {"m.room.member", "m.room.encrypted"}
