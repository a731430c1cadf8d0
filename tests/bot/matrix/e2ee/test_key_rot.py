"""Bits that flip in the key file or beside it: all keys are as they were, new ones are made, or the start says why."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest
import structlog

from bot.matrix import Identity
from bot.matrix.e2ee.encryption import Encryption
from bot.matrix.e2ee.machine import Machine
from bot.matrix.errors import KeysLost, PickleKeyWrong
from tests.bot.matrix.e2ee.conftest import Bot
from tests.bot.matrix.e2ee.nio_person import NioPerson

log = structlog.get_logger(__name__)

SEEDS: Final = int(os.environ.get("MUSHER_KEY_ROT_SEEDS", "120"))
KINDS: Final = ("flip", "flip in the header", "cut", "flip in the journal", "cut journal", "flip in the pickle key")


@dataclass(frozen=True)
class Patient:
    """The key files of a bot that has talked; as a stop leaves them, and as a kill in the midst of a commit does."""

    bot: Bot
    identity: Identity
    stopped: Path
    killed: Path
    holds: dict[str, Any]

    def copy_to(self, folder: Path, kind: str) -> tuple[Path, Path]:
        """A copy to be damaged: the database's path, and the file that is to suffer."""
        shutil.copytree(self.killed if "journal" in kind else self.stopped, folder)
        beside = folder / self.bot.options.beside.name
        (keys,) = (each for each in folder.glob("*.keys-*") if not each.name.endswith("-journal"))
        if "pickle" in kind:
            return beside, beside.with_name(f"{beside.name}.pickle-key")
        return beside, keys.with_name(f"{keys.name}-journal") if "journal" in kind else keys


def holds(machine: Machine) -> dict[str, Any]:
    """All that a key file holds, as it is in use."""
    olm, sql = machine.olm, machine.vault.sql
    inbound = olm.inbound_group_store
    return {
        "identity": (machine.own.identity, machine.own.published),
        "sessions": {(each, one.id) for each, some in olm.session_store.items() for one in some},
        "room keys": {(each.room_id, each.sender_key, each.id, each.first_known_index) for each in inbound},
        "devices": {
            (each.user_id, each.id, each.ed25519, each.curve25519, each.deleted, each.trust_state)
            for each in olm.device_store
        },
        "rules": machine.rules,
        **{
            name: sorted(sql(f"SELECT * FROM musher_{name}"))
            for name in ("facts", "owners", "pending", "noticed", "rooms")
        },
    }


async def load(bot: Bot, beside: Path, identity: Identity) -> dict[str, Any]:
    """Take up the keys as a start does, before it asks the homeserver."""
    encryption = Encryption(bot.client._wire, bot.settings, replace(bot.options, beside=beside))
    try:
        machine = await encryption._load(identity)
        found: dict[str, Any] = await machine.vault.run(holds, machine)
        return found
    finally:
        await encryption.close()


def kill_in_a_commit(keys: Path, folder: Path) -> None:
    """Copy the folder of a key file in the midst of a change to all of it, which the next opening has to undo."""
    with closing(sqlite3.connect(keys, isolation_level=None)) as database:
        database.create_function("with_row", -1, lambda *_: 0)
        database.execute("PRAGMA cache_size = 1")
        database.execute("BEGIN IMMEDIATE")
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            database.execute(f"DELETE FROM {table}")
        shutil.copytree(keys.parent, folder)
        database.execute("ROLLBACK")


@pytest.fixture
async def patient(bot: Bot, alice: NioPerson, room: str, tmp_path: Path) -> Patient:
    for number in range(3):
        await alice.say(room, f"question {number}")
        await bot.until_heard(f"question {number}")
        await bot.say(room, f"answer {number}")
        await alice.until_heard(f"answer {number}")
    content = {"algorithm": "m.megolm.v1.aes-sha2", "session_id": "unknown", "ciphertext": "AwgAEnACgAkLmt6qF84IK"}
    event = {"event_id": "$1", "type": "m.room.encrypted", "sender": alice.user_id, "content": content}
    assert await bot.encryption.read(room, event) is None
    (keys,), beside = bot.key_files(), bot.options.beside
    stopped, killed = tmp_path / "stopped", tmp_path / "killed"
    stopped.mkdir()
    for file in keys.parent.glob(f"{beside.name}.*"):
        shutil.copy(file, stopped)
    kill_in_a_commit(stopped / keys.name, killed)
    assert bot.identity is not None
    patient = Patient(bot, bot.identity, stopped, killed, await load(bot, stopped / beside.name, bot.identity))
    assert all(part for name, part in patient.holds.items() if name != "noticed"), patient.holds
    undone, _ = patient.copy_to(tmp_path / "undone", "journal")
    assert await load(bot, undone, bot.identity) == patient.holds
    return patient


def damage(file: Path, kind: str, seed: int) -> str:
    """Do one of the things that disks do; returns what it was."""
    chance, data = random.Random(seed), bytearray(file.read_bytes())
    if kind.startswith("cut"):
        length = chance.choice([0, chance.randrange(len(data)), chance.randrange(len(data)) // 512 * 512])
        os.truncate(file, length)
        return f"{file.name} cut from {len(data)} to {length} bytes"
    used = [place for place, byte in enumerate(data) if byte]
    in_header = chance.choice([18, 19, chance.randrange(100)])  # those two make SQLite take a file for a read-only one
    at, bit = in_header if "header" in kind else chance.choice(used), chance.randrange(8)
    data[at] ^= 1 << bit
    file.write_bytes(data)
    return f"bit {bit} of byte {at} of {file.name}"


async def examine(patient: Patient, beside: Path, kind: str) -> str:
    """Load the keys; those that are not refused must be as they were, all of them."""
    try:
        found = await load(patient.bot, beside, patient.identity)
    except KeysLost as lost:
        assert "\n" not in str(lost)
        return "a new device"
    except PickleKeyWrong:
        assert "pickle" in kind
        return "refused"
    if not found["facts"]:  # not of the age that the database remembers
        return "a new device"
    for name, part in found.items():
        assert part == patient.holds[name], f"{name} is silently different"
    return "whole"


async def test_rot_in_the_key_file_does_no_harm_or_leads_to_a_new_device(patient: Patient, tmp_path: Path) -> None:
    tally: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    for seed in range(SEEDS):
        kind = KINDS[seed % len(KINDS)]
        beside, file = patient.copy_to(tmp_path / str(seed), kind)
        done = damage(file, kind, seed)
        try:
            tally[kind, await examine(patient, beside, kind)] += 1
        except Exception as error:
            wrong.append(f"seed {seed}, {done}: {error!r}"[:300])
        shutil.rmtree(beside.parent)
    log.info("rot_examined", **{f"{kind}: {outcome}": count for (kind, outcome), count in sorted(tally.items())})
    assert not wrong, "\n".join(wrong)
    for kind in KINDS:
        assert any(outcome != "whole" for (each, outcome) in tally if each == kind), f"no {kind} did anything"
