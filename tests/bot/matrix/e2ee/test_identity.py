"""What others see of the bot: one identity for life, whatever happens to its keys."""

from __future__ import annotations

import shutil
import sqlite3
import stat
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from bot.matrix import KeysLost, KeysUnavailable, PickleKeyWrong
from bot.matrix.e2ee import encryption
from bot.matrix.e2ee.identity import Seeds, judge
from bot.matrix.e2ee.json_signing import is_signed
from bot.matrix.e2ee.model import KeysLeft
from bot.matrix.errors import PasswordAsked
from bot.matrix.wire import Wire
from tests.bot.matrix.e2ee.conftest import Bot, enter
from tests.bot.matrix.e2ee.nio_person import NioPerson
from tests.bot.matrix.test_client import revoke
from tests.servers.synapse import PASSWORD

Seen = dict[str, Any]


async def seen_by(alice: NioPerson, user_id: str) -> Seen:
    """What the homeserver shows Alice of a user's keys."""
    headers = {"Authorization": f"Bearer {alice.client.access_token}"}
    url = f"{alice.client.homeserver}/_matrix/client/v3/keys/query"
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(url, json={"device_keys": {user_id: []}}) as response,
    ):
        answer: Seen = await response.json()
        return answer


def identity_of(seen: Seen, user_id: str) -> dict[str, str]:
    return {usage: next(iter(seen[f"{usage}_keys"][user_id]["keys"].values())) for usage in ("master", "self_signing")}


def assert_signed(seen: Seen, bot: Bot) -> None:
    assert bot.identity is not None
    keys = identity_of(seen, bot.user_id)
    devices = seen["device_keys"][bot.user_id]
    assert list(devices) == [bot.identity.device_id]
    self_signing = seen["self_signing_keys"][bot.user_id]
    assert is_signed(self_signing, bot.user_id, f"ed25519:{keys['master']}", keys["master"])
    for device in devices.values():
        assert is_signed(device, bot.user_id, f"ed25519:{keys['self_signing']}", keys["self_signing"])


async def test_the_device_is_signed_by_an_identity_that_no_start_changes(bot: Bot, alice: NioPerson) -> None:
    first = await seen_by(alice, bot.user_id)
    assert_signed(first, bot)
    own = await bot.client._wire.post("keys", "query", body={"device_keys": {bot.user_id: []}})
    assert "user_signing" in own["user_signing_keys"][bot.user_id]["usage"]
    with capture_logs() as logs:
        await bot.start()
    assert await seen_by(alice, bot.user_id) == first
    assert {line["event"] for line in logs} == {"login_resumed"}
    again = await bot.client._wire.post("keys", "query", body={"device_keys": {bot.user_id: []}})
    assert again["user_signing_keys"] == own["user_signing_keys"]


async def test_a_lost_key_store_leads_to_a_new_device_of_the_same_identity(
    bot: Bot, alice: NioPerson, room: str
) -> None:
    before, former = identity_of(await seen_by(alice, bot.user_id), bot.user_id), bot.identity
    await bot.stop()
    for file in bot.key_files():
        file.unlink()
    with capture_logs() as logs:
        assert await bot.start() != former
    assert [line["problem"] for line in logs if line["event"] == "key_store_lost"] == ["the key file is gone"]
    seen = await seen_by(alice, bot.user_id)
    assert_signed(seen, bot)
    assert identity_of(seen, bot.user_id) == before
    assert len(bot.key_files()) == 1
    await bot.sync()
    await alice.sync()
    await alice.say(room, "can you read me?")
    await bot.until_heard("can you read me?")
    await bot.say(room, "I can")
    await alice.until_heard("I can")


async def test_an_older_copy_of_the_key_store_is_not_used(bot: Bot) -> None:
    former = bot.identity
    (file,) = bot.key_files()
    await bot.stop()
    copy = file.with_suffix(".copy")
    shutil.copy(file, copy)
    await bot.start()
    await bot.stop()
    copy.replace(file)
    with capture_logs() as logs:
        assert await bot.start() != former
    assert "older copy" in next(line["problem"] for line in logs if line["event"] == "key_store_lost")


async def test_a_store_whose_keys_the_server_refuses_is_given_up(bot: Bot, alice: NioPerson) -> None:
    """Both the database and the key store are older than what the server has."""
    from bot.matrix import LoggedOut

    (file,) = bot.key_files()
    await bot.stop()
    shutil.copy(file, file.with_suffix(".copy"))
    settings, former = dict(bot.settings.values), bot.identity
    await bot.start()
    await bot.encryption._devices.upload(KeysLeft(0, fallback=True))
    await bot.stop()
    file.with_suffix(".copy").replace(file)
    bot.settings.values = settings
    await bot.start()
    with pytest.raises(LoggedOut):
        await bot.encryption.receive({"device_one_time_keys_count": {"signed_curve25519": 0}}, None)
    assert (await bot.start()).device_id != (former.device_id if former else "")
    assert_signed(await seen_by(alice, bot.user_id), bot)


async def test_a_login_that_was_ended_is_renewed_with_the_same_keys(bot: Bot, alice: NioPerson, room: str) -> None:
    before = identity_of(await seen_by(alice, bot.user_id), bot.user_id)
    assert bot.identity is not None
    former = bot.identity
    await revoke(bot.credentials.homeserver, former.access_token)
    bot.identity = await bot.client.connect(former)
    assert bot.identity.device_id == former.device_id
    seen = await seen_by(alice, bot.user_id)
    assert_signed(seen, bot)
    assert identity_of(seen, bot.user_id) == before
    await bot.sync()
    await bot.say(room, "here again")
    await alice.until_heard("here again")


@pytest.mark.parametrize("odd", [None, [], 4, "x", {}, {"keys": 4}, {"keys": {"ed25519:SLED": 4}}], ids=str)
@pytest.mark.parametrize("deep", [True, False])
def test_of_a_strange_answer_about_keys_nothing_is_made(odd: object, deep: bool) -> None:
    user = "@musher:fake"
    names = ("device_keys", "master_keys", "self_signing_keys", "user_signing_keys")
    answer: dict[str, Any] = {name: {user: odd} if deep else odd for name in names}
    if deep:
        answer["device_keys"][user] = {"SLED": odd}
    seen = judge(answer, user, "SLED")
    assert not seen.trusted
    assert (seen.device_key, seen.master_key) == (None, None)
    assert judge({"device_keys": {user: odd}}, user, "SLED") == judge({}, user, "SLED")


async def test_an_identity_of_somebody_else_is_replaced_by_password(bot: Bot, alice: NioPerson) -> None:
    before = identity_of(await seen_by(alice, bot.user_id), bot.user_id)
    await bot.stop()
    del bot.settings.values["matrix_cross_signing_seeds"]
    with capture_logs() as logs:
        await bot.start()
    assert "identity_replaced" in [line["event"] for line in logs]
    seen = await seen_by(alice, bot.user_id)
    assert_signed(seen, bot)
    assert identity_of(seen, bot.user_id) != before


async def replace_identity(bot: Bot) -> Any:
    """Do what another client of the account does when it resets the identity; returns the new one."""
    keys = Seeds.make().public(bot.user_id)
    wire = Wire(bot.credentials.homeserver, bot.user_id)
    assert bot.identity is not None
    wire.adopt(bot.identity)
    try:
        with pytest.raises(PasswordAsked) as asked:
            await wire.post("keys", "device_signing", "upload", body=keys)
        identifier = {"type": "m.id.user", "user": bot.user_id}
        auth = {"type": "m.login.password", "identifier": identifier, "password": PASSWORD}
        body = keys | {"auth": auth | {"session": asked.value.session}}
        await wire.post("keys", "device_signing", "upload", body=body)
    finally:
        await wire.close()
    return keys


async def until_logged(bot: Bot, event: str) -> None:
    with capture_logs() as logs:
        while event not in [line["event"] for line in logs]:
            await bot.sync(500)


async def test_an_identity_that_another_client_replaces_meanwhile_is_replaced_once(
    bot: Bot, alice: NioPerson, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encryption, "TRUST_EVERY_S", 0.0)
    await bot.sync()
    await replace_identity(bot)
    await until_logged(bot, "identity_replaced_by_another_client")
    assert_signed(await seen_by(alice, bot.user_id), bot)
    theirs = await replace_identity(bot)
    await until_logged(bot, "identity_contested")
    seen = await seen_by(alice, bot.user_id)
    assert seen["master_keys"][bot.user_id]["keys"] == theirs["master_key"]["keys"]


async def test_an_identity_that_another_client_replaced_while_it_was_down_is_replaced(
    bot: Bot, alice: NioPerson
) -> None:
    await bot.stop()
    await replace_identity(bot)
    await bot.start()
    seen = await seen_by(alice, bot.user_id)
    assert_signed(seen, bot)
    await bot.start()
    assert await seen_by(alice, bot.user_id) == seen


async def test_without_a_password_an_identity_of_somebody_else_is_left_and_told_of(bot: Bot) -> None:
    await bot.stop()
    del bot.settings.values["matrix_cross_signing_seeds"]
    bot.options = replace(bot.options, password=None)
    with capture_logs() as logs:
        await bot.start()
    (told,) = [line for line in logs if line["event"] == "identity_not_uploaded"]
    assert "matrix.password" in told["reason"]


async def test_without_a_password_lost_keys_end_the_start_with_what_to_do(bot: Bot) -> None:
    assert bot.identity is not None
    await bot.stop()
    for file in bot.key_files():
        file.unlink()
    bot.credentials = replace(bot.credentials, password=None)
    with pytest.raises(KeysLost, match=r"matrix\.access_token"):
        await bot.start()


async def test_the_key_files_are_for_their_owner_only_and_of_no_use_with_another_pickle_key(bot: Bot) -> None:
    folder = bot.options.beside.parent
    for file in folder.glob(f"{bot.options.beside.name}.*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    bot.options = replace(bot.options, pickle_key="another")
    with pytest.raises(PickleKeyWrong, match="pickle"):
        await bot.start()


async def test_a_configured_pickle_key_leaves_no_key_on_the_disk(
    make_bot: Callable[..., Awaitable[Bot]], alice: NioPerson
) -> None:
    bot = await make_bot(pickle_key="a secret of the operator")
    assert not list(bot.options.beside.parent.glob("*.pickle-key"))
    room = await enter(bot, alice)
    await bot.say(room, "hello")
    await alice.until_heard("hello")


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5000])


def _cut_to_nothing(file: Path) -> None:
    file.write_bytes(b"")


def _overwrite(file: Path) -> None:
    file.write_bytes(b"no database at all " * 1000)


def _alter_an_owner(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.create_function("with_row", -1, lambda total, *_: total)  # as a bit that flips: no sum knows of it
        assert database.execute("UPDATE musher_owners SET owner = upper(owner)").rowcount


def _alter_a_session_before_there_were_sums(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        for (trigger,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{trigger}"')
        database.execute("DROP TABLE musher_sums")
        assert database.execute("UPDATE olmsessions SET session = 'AAAA'").rowcount


@pytest.mark.parametrize(
    "damage", [_cut, _cut_to_nothing, _overwrite, _alter_an_owner, _alter_a_session_before_there_were_sums]
)
async def test_a_damaged_key_store_leads_to_a_new_device_of_the_same_identity(
    bot: Bot, alice: NioPerson, room: str, damage: Callable[[Path], None]
) -> None:
    await alice.say(room, "one")
    await bot.until_heard("one")
    before, former = identity_of(await seen_by(alice, bot.user_id), bot.user_id), bot.identity
    await bot.stop()
    damage(*bot.key_files())
    with capture_logs() as logs:
        assert await bot.start() != former
    assert "key_store_lost" in [line["event"] for line in logs]
    seen = await seen_by(alice, bot.user_id)
    assert_signed(seen, bot)
    assert identity_of(seen, bot.user_id) == before
    await alice.until(lambda: bot.identity and bot.identity.device_id in alice.client.device_store[bot.user_id])
    await alice.say(room, "two")
    await bot.until_heard("two")


async def test_a_key_store_that_can_not_be_written_for_a_while_loses_no_key(
    bot: Bot, alice: NioPerson, room: str
) -> None:
    await bot.encryption._vault.run(bot.encryption._vault.sql, "PRAGMA query_only = ON")
    await alice.say(room, "one")
    with pytest.raises(KeysUnavailable, match="can't be used: attempt to write a readonly database"):
        await bot.sync(500)
    await bot.encryption._vault.run(bot.encryption._vault.sql, "PRAGMA query_only = OFF")
    await bot.until_heard("one")
    await bot.start()
    await alice.say(room, "two")
    await bot.until_heard("two")


async def test_the_own_identity_is_not_looked_at_again_after_each_message(
    bot: Bot, alice: NioPerson, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = [await enter(bot, alice, encrypted=False) for _ in range(2)]
    wire = bot.client._wire
    post, asked = wire.post, list[tuple[str, ...]]()

    async def noted(*path: str, **options: Any) -> dict[str, Any]:
        asked.append(path)
        return await post(*path, **options)

    monkeypatch.setattr(wire, "post", noted)
    for number in range(4):
        for room in rooms:
            await bot.say(room, f"message {number}")
            await bot.sync(500)
    assert asked.count(("keys", "query")) <= 1
