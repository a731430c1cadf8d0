"""nio's key store, with plain SQL for what there is thousands of: devices, sessions with them, and keys of rooms.

nio compares each device that it loads with all those before, asks a question more for each row that it reads, and binds
its tables anew for each that it writes. The tables stay nio's own (`nio.store.models`, version 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nio.crypto import (  # type: ignore[import-untyped]
    DeviceStore,
    GroupSessionStore,
    InboundGroupSession,
    OlmAccount,
    OlmDevice,
    Session,
    TrustState,
)
from nio.store import SqliteStore  # type: ignore[import-untyped]

_ACCOUNT_ID: Final = "(SELECT id FROM accounts WHERE user_id = ? AND device_id = ?)"
_SAVE_ACCOUNT: Final = """
    INSERT INTO accounts (user_id, device_id, shared, account) VALUES (?, ?, ?, ?)
    ON CONFLICT (user_id, device_id) DO UPDATE SET shared = excluded.shared, account = excluded.account"""
_SAVE_SESSION: Final = f"""
    INSERT OR REPLACE INTO olmsessions
        (account_id, sender_key, session_id, session, creation_time, last_usage_date)
    VALUES ({_ACCOUNT_ID}, ?, ?, ?, ?, ?)"""
_SAVE_DEVICE: Final = f"""
    INSERT INTO devicekeys (account_id, user_id, device_id, display_name, deleted) VALUES ({_ACCOUNT_ID}, ?, ?, ?, ?)
    ON CONFLICT (account_id, user_id, device_id) DO UPDATE SET deleted = excluded.deleted
    RETURNING id"""
_SAVE_KEY: Final = "INSERT OR REPLACE INTO keys (device_id, key_type, key) VALUES (?, ?, ?)"
_LOAD_DEVICES: Final = f"""
    SELECT device.user_id, device.device_id, display_name, deleted, ed25519.key, curve25519.key, state
    FROM devicekeys AS device
    JOIN keys AS ed25519 ON ed25519.device_id = device.id AND ed25519.key_type = 'ed25519'
    JOIN keys AS curve25519 ON curve25519.device_id = device.id AND curve25519.key_type = 'curve25519'
    LEFT JOIN devicetruststate AS trust ON trust.device_id = device.id
    WHERE account_id = {_ACCOUNT_ID} ORDER BY device.id"""
_LOAD_ROOM_KEYS: Final = f"""
    SELECT room_id, sender_key, fp_key, session FROM megolminboundsessions WHERE account_id = {_ACCOUNT_ID}"""
_DATE: Final = "%Y-%m-%d %H:%M:%S.%f"
"""Of nio's `DateField`."""


class KeyStore(SqliteStore):  # type: ignore[misc]
    """The keys of one device in one file, as nio keeps them. Raises SQLite's errors as peewee's."""

    def save_account(self, account: OlmAccount) -> None:
        """Keep the device's own keys."""
        values = (*self._owner, account.shared, account.pickle(self.pickle_key))
        self.database.execute_sql(_SAVE_ACCOUNT, values)

    def save_session(self, curve_key: str, session: Session) -> None:
        """Keep an Olm session with the device that has this curve25519 key."""
        dates = (session.creation_time.strftime(_DATE), session.use_time.strftime(_DATE))
        values = (*self._owner, curve_key, session.id, session.pickle(self.pickle_key), *dates)
        self.database.execute_sql(_SAVE_SESSION, values)

    def save_device_keys(self, device_keys: Mapping[str, Mapping[str, OlmDevice]]) -> None:
        """Keep devices: `{user: {device id: device}}`."""
        with self.database.atomic():
            for device in (each for devices in device_keys.values() for each in devices.values()):
                values = (*self._owner, device.user_id, device.id, device.display_name, device.deleted)
                ((row,),) = self.database.execute_sql(_SAVE_DEVICE, values).fetchall()
                for kind, key in device.keys.items():
                    self.database.execute_sql(_SAVE_KEY, (row, kind, key))

    def load_device_keys(self) -> DeviceStore:
        """All devices that were kept."""
        store = DeviceStore()
        rows = self.database.execute_sql(_LOAD_DEVICES, self._owner)
        for user_id, device_id, name, deleted, ed25519, curve25519, state in rows:
            store[user_id][device_id] = OlmDevice(
                user_id,
                device_id,
                {"ed25519": ed25519, "curve25519": curve25519},
                display_name=name,
                deleted=bool(deleted),
                trust_state=TrustState(state or TrustState.unset),
            )
        return store

    def load_inbound_group_sessions(self) -> GroupSessionStore:
        """All keys of rooms. None was forwarded: `Machine` takes a key from the device that made it alone."""
        store = GroupSessionStore()
        rows = self.database.execute_sql(_LOAD_ROOM_KEYS, self._owner)
        for room_id, sender_key, ed25519, pickle in rows:
            key = InboundGroupSession.from_pickle(pickle, ed25519, sender_key, room_id, self.pickle_key)
            store[room_id][sender_key][key.id] = key
        return store

    @property
    def _owner(self) -> tuple[str, str]:
        return self.user_id, self.device_id
