"""Emoji verification that an admin starts: the bot shows the emoji in its log and follows the admin's word."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
import vodozemac
from nio.crypto.sas import Sas as NioSas  # type: ignore[import-untyped]
from structlog.testing import capture_logs

from bot.matrix.e2ee.json_signing import canonical, unpadded
from bot.matrix.errors import Unreachable
from tests.bot.matrix.e2ee.conftest import Bot, enter
from tests.bot.matrix.e2ee.nio_person import NioPerson
from tests.bot.matrix.e2ee.test_devices import send_to_device

Json = dict[str, Any]


class Verifying:
    """Alice's side of a verification, as the specification has it; nio's own hashes the commitment differently."""

    def __init__(self, alice: NioPerson, bot: Bot) -> None:
        assert bot.identity is not None
        self.alice = alice
        self.bot = bot
        self.device_id = bot.identity.device_id
        self.transaction_id = uuid4().hex
        self.sas = vodozemac.Sas()
        self.established: vodozemac.EstablishedSas | None = None

    async def send(self, kind: str, **content: Any) -> Json:
        """Send one step, let the bot take it, and return what it answered, by its kind."""
        content["transaction_id"] = self.transaction_id
        before = len(await self._answers())
        await send_to_device(self.alice, self.bot, content, f"m.key.verification.{kind}")
        await self.bot.sync()
        return dict((await self._answers())[before:])

    async def _answers(self) -> list[tuple[str, Json]]:
        events = await self.alice.peek_to_device()
        return [
            (each["type"].rpartition(".")[2], each["content"])
            for each in events
            if each["content"].get("transaction_id") == self.transaction_id
        ]

    async def until_compared(self) -> vodozemac.SasBytes:
        """Go as far as the emoji; returns Alice's."""
        own = self.alice.client.device_id
        ready = await self.send("request", from_device=own, methods=["m.sas.v1"], timestamp=1)
        assert ready["ready"]["methods"] == ["m.sas.v1"]
        start: Json = {
            "from_device": own,
            "method": "m.sas.v1",
            "key_agreement_protocols": ["curve25519-hkdf-sha256"],
            "hashes": ["sha256"],
            "message_authentication_codes": ["hkdf-hmac-sha256.v2"],
            "short_authentication_string": ["emoji", "decimal"],
        }
        accept = (await self.send("start", **start))["accept"]
        key = self.sas.public_key.to_base64()
        their_key = (await self.send("key", key=key))["key"]["key"]
        content = canonical(start | {"transaction_id": self.transaction_id})
        assert accept["commitment"] == unpadded(hashlib.sha256(their_key.encode() + content).digest())
        self.established = self.sas.diffie_hellman(vodozemac.Curve25519PublicKey.from_base64(their_key))
        return self.established.bytes(
            f"MATRIX_KEY_VERIFICATION_SAS|{self.alice.user_id}|{own}|{key}|"
            f"{self.bot.user_id}|{self.device_id}|{their_key}|{self.transaction_id}"
        )

    async def confirm(self, signing_key: str) -> Json:
        """Tell the bot that the emoji are the same, by the MAC of Alice's key."""
        name = f"ed25519:{self.alice.client.device_id}"
        ends = f"{self.alice.user_id}{self.alice.client.device_id}{self.bot.user_id}{self.device_id}"
        return await self.send(
            "mac", mac={name: self.mac(signing_key, ends, name)}, keys=self.mac(name, ends, "KEY_IDS")
        )

    def mac(self, text: str, ends: str, key_id: str) -> str:
        assert self.established is not None
        return self.established.calculate_mac(text, f"MATRIX_KEY_VERIFICATION_MAC{ends}{self.transaction_id}{key_id}")


@pytest.fixture
async def verifying(make_bot: Callable[..., Awaitable[Bot]], alice: NioPerson) -> Verifying:
    """An admin's verification that has not begun."""
    bot = await make_bot(admins=frozenset({alice.user_id}))
    await enter(bot, alice)
    return Verifying(alice, bot)


async def test_an_admin_sees_the_same_emoji_and_verifies(verifying: Verifying) -> None:
    alice, bot = verifying.alice, verifying.bot
    with capture_logs() as logs:
        shown = await verifying.until_compared()
        (told,) = [line for line in logs if line["event"] == "verification_compare"]
        emoji = [NioSas.emoji[index] for index in shown.emoji_indices]
        assert told["emoji"] == " ".join(f"{symbol} {name}" for symbol, name in emoji)
        assert told["numbers"] == "-".join(map(str, shown.decimals))
        answers = await verifying.confirm(alice.client.olm.account.identity_keys["ed25519"])
    ends = f"{bot.user_id}{verifying.device_id}{alice.user_id}{alice.client.device_id}"
    keys = dict(bot.encryption._verifications._vouched_for())
    assert len(keys) == 2
    assert answers["mac"]["mac"] == {name: verifying.mac(key, ends, name) for name, key in keys.items()}
    assert "done" in answers
    assert "verification_done" in [line["event"] for line in logs]
    (device,) = bot.encryption._machine.active_devices(alice.user_id)
    assert device.verified


async def test_a_step_whose_answer_is_lost_on_the_way_is_answered_again(
    verifying: Verifying, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sync is repeated then, and brings the same step once more."""
    alice, bot = verifying.alice, verifying.bot
    devices, send, lost = bot.encryption._devices, bot.encryption._devices.send, set[str]()

    async def send_and_lose(kind: str, messages: dict[str, Json]) -> None:
        await send(kind, messages)
        if kind not in lost:
            lost.add(kind)
            raise Unreachable("http://fake", "the answer was lost")

    async def sync_again() -> None:
        before = None
        while before != len(lost):
            before = len(lost)
            with suppress(Unreachable):
                await Bot.sync(bot)

    monkeypatch.setattr(devices, "send", send_and_lose)
    monkeypatch.setattr(bot, "sync", sync_again)
    await verifying.until_compared()
    answers = await verifying.confirm(alice.client.olm.account.identity_keys["ed25519"])
    assert answers.keys() == {"mac", "done"}
    assert len(lost) == 5
    (device,) = bot.encryption._machine.active_devices(alice.user_id)
    assert device.verified


async def test_a_confirmation_of_another_key_is_refused(verifying: Verifying) -> None:
    await verifying.until_compared()
    answers = await verifying.confirm("the key of somebody in between")
    assert answers["cancel"]["code"] == "m.key_mismatch"
    (device,) = verifying.bot.encryption._machine.active_devices(verifying.alice.user_id)
    assert not device.verified


async def test_nobody_else_may_verify(bot: Bot, alice: NioPerson) -> None:
    await enter(bot, alice)
    answers = await Verifying(alice, bot).send("request", from_device=alice.client.device_id, methods=["m.sas.v1"])
    assert answers["cancel"]["code"] == "m.user"
