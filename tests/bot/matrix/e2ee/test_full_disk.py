"""A key file that can't be written to for a while: what is in use is what it holds, then and afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bot.matrix.e2ee.machine import Machine
from bot.matrix.e2ee.model import KeysLeft, ToDevice
from bot.matrix.e2ee.vault import Vault
from bot.matrix.errors import KeysUnavailable
from tests.bot.matrix.e2ee.test_large_room import Device

NONE_LEFT = KeysLeft(0, fallback=False)
LOW = 25


@pytest.fixture
async def vault(tmp_path: Path) -> AsyncIterator[Vault]:
    vault = Vault(tmp_path / "musher.db", None)
    await vault.run(vault.open, "@musher:fake", "SLED")
    yield vault
    await vault.close()


@pytest.fixture
async def machine(vault: Vault) -> Machine:
    return await made(vault)


async def made(vault: Vault) -> Machine:
    """What a start finds in the file."""
    return await vault.run(Machine, vault, "@musher:fake", "SLED")


async def writable(vault: Vault, yes: bool) -> None:
    await vault.run(vault.sql, f"PRAGMA query_only = {'OFF' if yes else 'ON'}")


async def test_no_key_is_given_out_that_the_file_does_not_hold(vault: Vault, machine: Machine) -> None:
    await writable(vault, False)
    for _ in range(3):
        with pytest.raises(KeysUnavailable):
            await vault.run(machine.own.keys_to_upload, NONE_LEFT, LOW)
    await writable(vault, True)
    given = await vault.run(machine.own.keys_to_upload, NONE_LEFT, LOW)
    after_restart = await made(vault)
    kept = await vault.run(after_restart.own.keys_to_upload, None, LOW)
    assert given is not None
    assert kept is not None
    for kind in ("one_time_keys", "fallback_keys"):
        assert kept[kind].keys() == given[kind].keys() != set()


async def test_a_device_that_could_not_be_saved_is_learnt_again(vault: Vault, machine: Machine) -> None:
    alice = Device(1)
    listed: dict[str, Any] = {alice.user: {alice.id: alice.keys()}}
    await writable(vault, False)
    with pytest.raises(KeysUnavailable):
        await vault.run(machine.learn_devices, listed)
    await writable(vault, True)
    await vault.run(machine.learn_devices, listed)
    await writable(vault, False)
    with pytest.raises(KeysUnavailable):  # what is in use is read from the file again
        await vault.run(machine.open_all, [ToDevice("m.room.encrypted", alice.user, {})])
    assert [each.id for each in machine.active_devices(alice.user)] == [alice.id]
