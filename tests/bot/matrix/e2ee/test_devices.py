"""What other devices, or whoever pretends to be one, can do to the bot: nothing that lasts."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import aiohttp
import pytest
import vodozemac

from bot.demo.homeserver import Homeserver
from bot.matrix.errors import Unreachable
from tests.bot.matrix.e2ee.conftest import Bot, PersonMaker, enter
from tests.bot.matrix.e2ee.nio_person import NioPerson


async def call(alice: NioPerson, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One request as Alice."""
    headers = {"Authorization": f"Bearer {alice.client.access_token}"}
    url = f"{alice.client.homeserver}/_matrix/client/v3/{path}"
    async with aiohttp.ClientSession(headers=headers) as http, http.request(method, url, json=body) as response:
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def send_to_device(alice: NioPerson, bot: Bot, content: dict[str, Any], kind: str = "m.room.encrypted") -> None:
    assert bot.identity is not None
    body = {"messages": {bot.user_id: {bot.identity.device_id: content}}}
    await call(alice, "PUT", f"sendToDevice/{kind}/{uuid4().hex}", body)


def unknown_pre_key_message(bot: Bot) -> dict[str, Any]:
    """An Olm message that begins a session with a one-time key that the bot never had."""
    curve25519, _ = bot.encryption._machine.own.identity
    account = vodozemac.Account()
    session = account.create_outbound_session(
        vodozemac.Curve25519PublicKey.from_base64(curve25519), vodozemac.Curve25519SecretKey().public_key()
    )
    _, ciphertext = session.encrypt(b"{}").to_parts()
    from unpaddedbase64 import encode_base64

    return {
        "algorithm": "m.olm.v1.curve25519-aes-sha2",
        "sender_key": account.curve25519_key.to_base64(),
        "ciphertext": {curve25519: {"type": 0, "body": encode_base64(ciphertext)}},
    }


async def test_a_message_with_an_unknown_one_time_key_stops_nothing(bot: Bot, alice: NioPerson, room: str) -> None:
    await send_to_device(alice, bot, unknown_pre_key_message(bot))
    await alice.say(room, "still there?")
    await bot.until_heard("still there?")


async def test_no_nonsense_from_a_device_stops_anything(bot: Bot, alice: NioPerson, room: str) -> None:
    curve25519, _ = bot.encryption._machine.own.identity
    olm = "m.olm.v1.curve25519-aes-sha2"
    for content in (
        {},
        {"algorithm": olm},
        {"algorithm": olm, "sender_key": 5, "ciphertext": {curve25519: {"type": 0, "body": "AAAA"}}},
        {"algorithm": olm, "sender_key": "x", "ciphertext": {curve25519: {"type": 1, "body": "!"}}},
        {"algorithm": olm, "sender_key": "x", "ciphertext": {curve25519: []}},
    ):
        await send_to_device(alice, bot, content)
    for kind in ("request", "start", "key", "mac", "cancel"):
        await send_to_device(alice, bot, {"transaction_id": "t", "from_device": []}, f"m.key.verification.{kind}")
    await alice.say(room, "still there?")
    await bot.until_heard("still there?")


async def drain(alice: NioPerson, bot: Bot) -> None:
    """Take the bot's one-time keys until the server has only the fallback key left."""
    assert bot.identity is not None
    claim = {"one_time_keys": {bot.user_id: {bot.identity.device_id: "signed_curve25519"}}}
    taken: set[str] = set()
    while True:
        given = (await call(alice, "POST", "keys/claim", claim))["one_time_keys"][bot.user_id][bot.identity.device_id]
        ((name, key),) = given.items()
        if key.get("fallback"):
            break
        assert name not in taken
        taken.add(name)
    assert len(taken) >= 50


async def left(bot: Bot) -> Any:
    """What a sync tells of the bot's keys at the server."""
    bot.sent += 1  # the same question would get the same answer for two minutes
    answer = await bot.client._wire.get("sync", query={"timeout": str(bot.sent), "since": str(bot.since)})
    return answer["device_one_time_keys_count"]["signed_curve25519"], answer["device_unused_fallback_key_types"]


async def test_a_pool_of_one_time_keys_that_was_drained_is_filled_again(bot: Bot, alice: NioPerson) -> None:
    await drain(alice, bot)
    assert await left(bot) == (0, [])
    await bot.sync()
    assert await left(bot) == (50, ["signed_curve25519"])


async def test_a_count_that_a_server_leaves_out_means_none(bot: Bot, alice: NioPerson) -> None:
    await drain(alice, bot)
    await bot.encryption.receive({"device_one_time_keys_count": {}}, None)
    assert (await left(bot))[0] == 50


async def test_a_pool_of_which_no_sync_tells_is_filled_again(
    bot: Bot, alice: NioPerson, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several homeservers leave out the count itself once it is zero. It is asked for, though not at each sync."""
    await drain(alice, bot)
    await bot.encryption.receive({}, None)
    assert (await left(bot))[0] == 50
    monkeypatch.setattr(bot.client._wire, "post", None)
    await bot.encryption.receive({}, None)


async def test_whoever_comes_while_the_pool_is_drained_and_the_bot_down_is_read(
    bot: Bot, alice: NioPerson, make_nio: PersonMaker
) -> None:
    people = [await make_nio("bob"), await make_nio("carol")]
    rooms = [await enter(bot, each) for each in people]
    await bot.stop()
    await drain(alice, bot)
    for person, room in zip(people, rooms, strict=True):
        await person.say(room, f"a key for {person.user_id}?")
    await bot.start()
    for person in people:
        await bot.until_heard(f"a key for {person.user_id}?")


async def test_a_session_that_is_broken_is_mended(bot: Bot, alice: NioPerson, room: str, synapse: Homeserver) -> None:
    await alice.say(room, "one")
    await bot.until_heard("one")
    await bot.say(room, "two")
    machine = bot.encryption._machine
    (device,) = machine.active_devices(alice.user_id)

    def break_it() -> None:
        machine.olm.session_store._entries.clear()
        machine.olm.wedged_devices.append(device)

    await machine.vault.run(break_it)
    await bot.sync()
    await alice.sync()
    await bot.say(room, "mended")
    await alice.until_heard("mended")


async def test_what_mends_a_session_is_sent_again_where_that_failed(
    bot: Bot, alice: NioPerson, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await alice.say(room, "one")
    await bot.until_heard("one")
    await bot.say(room, "two")
    machine = bot.encryption._machine
    (device,) = machine.active_devices(alice.user_id)
    sent: list[dict[str, Any]] = []

    async def fails_once(_kind: str, messages: dict[str, Any]) -> None:
        sent.append(messages)
        if len(sent) == 1:
            raise Unreachable("https://example.org", "no connection")

    monkeypatch.setattr(bot.encryption._devices, "send", fails_once)
    await machine.vault.run(machine.olm.wedged_devices.append, device)
    for _ in range(3):
        await bot.sync()
    assert [list(messages) for messages in sent] == [[alice.user_id]] * 2
    assert sent[0] == sent[1]
