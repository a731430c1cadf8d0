"""Our key store and nio's read and write the same file alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import vodozemac
from nio.crypto import (  # type: ignore[import-untyped]
    InboundGroupSession,
    OlmAccount,
    OlmDevice,
    OutboundSession,
    TrustState,
)
from nio.store import SqliteStore  # type: ignore[import-untyped]

from bot.matrix.e2ee.key_store import KeyStore

ME = ("@bot:example.org", "SLED")
ALICE = "@älice:example.org"
ROOM = "!room:example.org"
STORES = [SqliteStore, KeyStore]


def opened(kind: Any, folder: Path) -> Any:
    return kind(*ME, str(folder), "a pickle key", "keys")


def device(name: str, **fields: Any) -> OlmDevice:
    return OlmDevice(ALICE, name, {"ed25519": f"ed of {name}", "curve25519": f"curve of {name}"}, **fields)


def session_of(account: OlmAccount) -> OutboundSession:
    other = vodozemac.Account()
    other.generate_one_time_keys(1)
    (key,) = other.one_time_keys.values()
    return OutboundSession(account, other.curve25519_key.to_base64(), key.to_base64())


def listed(store: Any) -> list[tuple[Any, ...]]:
    return [
        (each.user_id, each.id, each.ed25519, each.curve25519, each.display_name, each.deleted, each.trust_state)
        for each in store.load_device_keys()
    ]


@pytest.mark.parametrize("writes", STORES)
@pytest.mark.parametrize("reads", STORES)
def test_what_one_writes_the_other_reads(tmp_path: Path, writes: Any, reads: Any) -> None:
    store = opened(writes, tmp_path)
    account = OlmAccount()
    store.save_account(account)
    account.shared = True
    store.save_account(account)
    session = session_of(account)
    for _ in range(2):
        store.save_session("curve of PHONE", session)
        session.encrypt("hello")
    phone, laptop, gone = device("PHONE", display_name="Älices Telefon"), device("LAPTOP"), device("GONE")
    store.save_device_keys({ALICE: {each.id: each for each in (phone, laptop, gone)}})
    gone.deleted = True
    store.save_device_keys({ALICE: {gone.id: gone}})
    store.verify_device(laptop)
    key = InboundGroupSession(vodozemac.GroupSession().session_key.to_base64(), "ed of PHONE", "curve of PHONE", ROOM)
    store.save_inbound_group_session(key)
    store.database.close()

    store = opened(reads, tmp_path)
    read = store.load_account()
    assert (read.identity_keys, read.shared) == (account.identity_keys, True)
    ((sender_key, (kept,)),) = store.load_sessions().items()
    assert (sender_key, kept.id) == ("curve of PHONE", session.id)
    assert abs(kept.creation_time - session.creation_time).total_seconds() < 1
    (read_key,) = store.load_inbound_group_sessions()
    assert (read_key.id, read_key.ed25519, read_key.sender_key, read_key.room_id, read_key.first_known_index) == (
        *(key.id, "ed of PHONE", "curve of PHONE", ROOM, 0),
    )
    assert listed(store) == [
        (ALICE, "PHONE", "ed of PHONE", "curve of PHONE", "Älices Telefon", False, TrustState.unset),
        (ALICE, "LAPTOP", "ed of LAPTOP", "curve of LAPTOP", "", False, TrustState.verified),
        (ALICE, "GONE", "ed of GONE", "curve of GONE", "", True, TrustState.unset),
    ]
    store.database.close()


def test_all_devices_and_all_keys_of_rooms_are_loaded_by_one_statement_each(tmp_path: Path) -> None:
    store = opened(KeyStore, tmp_path)
    store.save_account(OlmAccount())
    store.save_device_keys({ALICE: {f"D{n}": device(f"D{n}") for n in range(50)}})
    for _ in range(50):
        session_key = vodozemac.GroupSession().session_key.to_base64()
        store.save_inbound_group_session(InboundGroupSession(session_key, "ed", "curve", ROOM))
    statements: list[str] = []
    store.database.connection().set_trace_callback(statements.append)
    assert len(listed(store)) == len(list(store.load_inbound_group_sessions())) == 50
    assert len(statements) == 2
    store.database.close()


def test_the_devices_of_another_account_in_the_file_are_not_ours(tmp_path: Path) -> None:
    ours, theirs = (
        opened(KeyStore, tmp_path),
        KeyStore("@other:example.org", "X", str(tmp_path), "a pickle key", "keys"),
    )
    for store in (ours, theirs):
        store.save_account(OlmAccount())
    theirs.save_device_keys({ALICE: {"PHONE": device("PHONE")}})
    assert listed(ours) == []
    for store in (ours, theirs):
        store.database.close()
