"""All of the cryptography that needs no network: Olm between devices, Megolm in rooms.

Runs on the vault's thread. nio brings the ratchets and their storage; what nio decides with them (whom to believe a
forwarded key, when keys are uploaded, with whom they are shared) is decided here and in `sharing`.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any, Final

import structlog
import vodozemac
from nio.crypto import InboundGroupSession, OlmDevice, OutboundGroupSession  # type: ignore[import-untyped]
from nio.crypto.olm_machine import Olm  # type: ignore[import-untyped]
from peewee import DatabaseError  # type: ignore[import-untyped]
from unpaddedbase64 import decode_base64

from bot.matrix.e2ee.json_signing import Json, is_signed
from bot.matrix.e2ee.model import Encrypted, ToDevice
from bot.matrix.e2ee.own_keys import MEGOLM, OLM, OwnKeys
from bot.matrix.e2ee.vault import Vault

log = structlog.get_logger(__name__)

_RULES: Final = ("algorithm", "rotation_period_ms", "rotation_period_msgs")
_ROTATION_MS: Final = (3_600_000, 7 * 24 * 3_600_000)
_ROTATION_MESSAGES: Final = (1, 10_000)
"""What a room may ask for: not so often that every message costs a new key for everybody."""


class Unreadable(Exception):
    """A room's event that can't be decrypted now. `waits` tells whether its key may still come."""

    def __init__(self, problem: str, *, waits: bool) -> None:
        self.problem = problem
        self.waits = waits
        super().__init__(problem)


class _Olm(Olm):  # type: ignore[misc]
    """nio's machine, but what a device told is handed out instead of acted upon."""

    def _handle_olm_event(self, sender: str, sender_key: str, payload: Json) -> Any:
        return payload | {"sender_key": sender_key}


class Machine:
    """The keys of one device. Every method is to be run on the vault's thread."""

    def __init__(self, vault: Vault, user_id: str, device_id: str) -> None:
        self.vault = vault
        self.user_id = user_id
        self.device_id = device_id
        try:
            self.olm = _Olm(user_id, device_id, vault.store)
        except ValueError as error:  # of a key that can't be decrypted, though the account's could be
            raise DatabaseError(str(error)) from error
        self.own = OwnKeys(self.olm)
        rooms = vault.sql("SELECT room_id, rules FROM musher_rooms")
        self.rules: dict[str, Json] = {room_id: json.loads(rules) for room_id, rules in rooms}

    # --- devices

    def active_devices(self, user_id: str) -> list[OlmDevice]:
        """All devices of a user but this one that may be given keys."""
        return [
            device
            for device in self.olm.device_store.active_user_devices(user_id)
            if not (user_id == self.user_id and device.id == self.device_id) and not device.blacklisted
        ]

    def active_devices_of(self, users: set[str]) -> list[OlmDevice]:
        """The same of several users."""
        return [each for user in sorted(users) for each in self.active_devices(user)]

    def with_session(self, devices: list[OlmDevice]) -> list[OlmDevice]:
        """Those devices to which there is an Olm session."""
        return [each for each in devices if self.olm.session_store.get(each.curve25519) is not None]

    def learn_devices(self, listed: dict[str, Json]) -> None:
        """Take over what the server lists for users, in one commit."""
        try:
            with self.vault.atomic():
                self.olm.store.save_device_keys({user: self._learn(user, devices) for user, devices in listed.items()})
        except DatabaseError:
            # Else they would pass for known the next time, and never be saved.
            self.olm.device_store = self.vault.store.load_device_keys()
            raise

    def _learn(self, user_id: str, listed: Json) -> dict[str, OlmDevice]:
        """The devices of a user that have changed. A listing that changes a device's keys is a lie."""
        known = self.olm.device_store[user_id]
        changed: dict[str, OlmDevice] = {}
        current = set()
        for device_id, payload in listed.items():
            keys = _device_keys(user_id, device_id, payload)
            if keys is None:
                log.warning("device_passed_over", user=user_id, device=device_id, problem="its keys are not signed")
                continue
            before = known.get(device_id)
            if before is not None and (before.ed25519, before.curve25519) != (keys["ed25519"], keys["curve25519"]):
                log.warning("device_passed_over", user=user_id, device=device_id, problem="its keys have changed")
                continue
            current.add(device_id)
            if before is None or before.deleted:
                device = before or OlmDevice(user_id, device_id, keys)
                device.deleted = False
                known[device_id] = changed[device_id] = device
        for device_id, device in known.items():
            if device_id not in current and not device.deleted:
                device.deleted = True
                changed[device_id] = device
        return changed

    def without_session(self, users: set[str]) -> list[OlmDevice]:
        """The users' devices to which there is no Olm session, and those whose session is broken."""
        missing = self.active_devices_of(users)
        missing = [each for each in missing if self.olm.session_store.get(each.curve25519) is None]
        return missing + [each for each in self.olm.wedged_devices if each not in missing]

    def begin_sessions(self, claimed: list[tuple[OlmDevice, Json]]) -> list[OlmDevice]:
        """Make Olm sessions with the one-time keys that were claimed, in one commit; returns where a key is no good."""
        with self.vault.atomic():
            return [device for device, keys in claimed if not self._begin_session(device, keys)]

    def _begin_session(self, device: OlmDevice, claimed: Json) -> bool:
        key_object = next((key for key in claimed.values() if isinstance(key, dict)), None)
        if key_object is None or not is_signed(key_object, device.user_id, f"ed25519:{device.id}", device.ed25519):
            return False
        try:
            session = self.olm.create_session(key_object["key"], device.curve25519)
        except (ValueError, KeyError, TypeError):
            return False
        if device in self.olm.wedged_devices:
            self.olm.wedged_devices.remove(device)
            self.olm._queue_dummy_message(session, device)
        return True

    def take_outgoing(self) -> list[Any]:
        """What the Olm sessions themselves want sent; not given out twice."""
        outgoing, self.olm.outgoing_to_device_messages = self.olm.outgoing_to_device_messages, []
        return list(outgoing)

    def give_back(self, outgoing: list[Any]) -> None:
        """These could not be sent."""
        self.olm.outgoing_to_device_messages[:0] = outgoing

    def seal(self, devices: list[OlmDevice], kind: str, content: Json) -> dict[str, Json]:
        """Encrypt one message for each device: `{user: {device: content}}`."""
        sealed: dict[str, Json] = {}
        with self.vault.atomic():
            for device in devices:
                session = self.olm.session_store.get(device.curve25519)
                if session is not None:
                    sealed.setdefault(device.user_id, {})[device.id] = self.olm._olm_encrypt(
                        session, device, kind, content
                    )
        return sealed

    # --- from devices

    def open_all(self, events: list[ToDevice]) -> list[Json]:
        """Decrypt what devices sent and keep the room keys among it, in one commit; returns what was readable.

        A device can send anything. Whatever that does must not stop the sync: it would come again, for ever.
        """
        try:
            return self._open_all(events)
        except DatabaseError:
            # None of it is in the file, and it comes again: it must be as new to the ratchets as to the file.
            self.olm.account = self.vault.store.load_account()
            self.olm.load()
            raise

    def _open_all(self, events: list[ToDevice]) -> list[Json]:
        opened = []
        with self.vault.atomic():
            for event in events:
                try:
                    payload = self._open(event)
                except DatabaseError:
                    raise
                except Exception as error:  # the ratchets and their parsers raise what they like
                    log.warning("device_message_passed_over", sender=event.sender, problem=type(error).__name__)
                    self._unwedge(event)
                    continue
                if isinstance(payload, dict):
                    opened.append(payload)
            # A used one-time key is gone from the account; nio has saved the account only as it was before.
            self.olm.save_account()
        return opened

    def _open(self, event: ToDevice) -> Json | None:
        content = event.content
        if content.get("algorithm") != OLM:
            return None
        for_us = content["ciphertext"][self.own.identity[0]]
        if for_us["type"] == 0:
            message: Any = vodozemac.PreKeyMessage.from_base64(for_us["body"])
        else:
            message = vodozemac.AnyOlmMessage.normal(decode_base64(for_us["body"]))
        payload = self.olm.decrypt(event.sender, content["sender_key"], message)
        if not isinstance(payload, dict):
            log.warning("device_message_unreadable", sender=event.sender)
            return None
        if payload["type"] in ("m.room_key", "m.forwarded_room_key"):
            self._keep_room_key(payload)
        return payload

    def _unwedge(self, event: ToDevice) -> None:
        sender_key = event.content.get("sender_key")
        if isinstance(sender_key, str):
            self.olm._mark_device_for_unwedging(event.sender, sender_key)

    def _keep_room_key(self, payload: Json) -> None:
        content, sender_key = payload["content"], payload["sender_key"]
        if content["algorithm"] != MEGOLM:
            return
        room_id, session_id = content["room_id"], content["session_id"]
        if payload["type"] == "m.room_key":
            session = InboundGroupSession(content["session_key"], payload["keys"]["ed25519"], sender_key, room_id)
        else:
            # Only the device that made the key may send it again: nobody else can vouch for who wrote with it.
            if content["sender_key"] != sender_key or not self._is_awaited(payload["sender"], room_id, session_id):
                log.warning("forwarded_key_passed_over", sender=payload["sender"], session=room_id)
                return
            session = InboundGroupSession.import_session(
                content["session_key"], payload["keys"]["ed25519"], sender_key, room_id
            )
        known = self.olm.inbound_group_store.get(room_id, sender_key, session_id)
        if session.id != session_id:
            log.warning("room_key_passed_over", sender=payload["sender"], session=room_id)
            return
        if known is not None and known.first_known_index <= session.first_known_index:
            return
        self.olm.inbound_group_store[room_id][sender_key][session_id] = session
        self.olm.save_inbound_group_session(session)
        self.vault.sql(
            "INSERT OR IGNORE INTO musher_owners VALUES (?, ?, ?, ?)",
            room_id,
            sender_key,
            session_id,
            payload["sender"],
        )
        log.info("room_key_received", sender=payload["sender"], session=room_id)

    def _is_awaited(self, sender: str, room_id: str, session_id: str) -> bool:
        return bool(
            self.vault.sql(
                "SELECT 1 FROM musher_pending WHERE room_id = ? AND session_id = ? AND sender = ?",
                room_id,
                session_id,
                sender,
            )
        )

    # --- in rooms

    def has_key(self, event: Encrypted) -> bool:
        """Whether a key has come, from whomever."""
        return any(event.session_id in made for made in self.olm.inbound_group_store[event.room_id].values())

    def _key_of_sender(self, event: Encrypted) -> InboundGroupSession:
        """The key, if the event's sender sent it: the server alone says who the sender is.

        A device names its user within what it encrypts, so that is known of devices, too, that are gone by now.
        """
        owned = self.vault.sql(
            "SELECT sender_key FROM musher_owners WHERE room_id = ? AND session_id = ? AND owner = ?",
            event.room_id,
            event.session_id,
            event.sender,
        )
        for (sender_key,) in owned:
            session = self.olm.inbound_group_store.get(event.room_id, sender_key, event.session_id)
            if session is not None:
                return session
        problem = "its key was not made by a device of its sender" if self.has_key(event) else "its key has not come"
        raise Unreadable(problem, waits=True)

    def read(self, event: Encrypted) -> Json:
        """Decrypt a room's event: the same event, with its real type and content. Raises `Unreadable`."""
        session = self._key_of_sender(event)
        try:
            plaintext, index = session.decrypt(event.ciphertext)
            payload = json.loads(plaintext)
        except (ValueError, RecursionError) as error:
            # An index before the first one that we were given: the key may yet come from further back.
            raise Unreadable(f"decrypting failed: {error}", waits="index" in str(error)) from error
        if not isinstance(payload, dict) or payload.get("room_id") != event.room_id:
            raise Unreadable("it was written for another room", waits=False)
        if payload.get("type") == "m.room.redaction":
            # The homeserver, which alone knows who may take what back, has not seen that it is one.
            raise Unreadable("it is a redaction that nobody has checked", waits=False)
        place = (session.sender_key, session.id, index)
        if self.olm.message_index_store.setdefault(place, event.event_id) != event.event_id:
            raise Unreadable("it repeats another event", waits=False)
        content = payload.get("content")
        relation = event.source.get("content", {}).get("m.relates_to")
        if isinstance(content, dict) and relation is not None:
            content.setdefault("m.relates_to", relation)
        return {**event.source, "type": payload.get("type"), "content": content}

    def remember_rules(self, room_id: str, rules: Json) -> Json:
        """Keep how a room is encrypted, and return how it is to be.

        A room that was once encrypted is so for ever, and as it was: what the server, or somebody with power in the
        room, puts in the place of an algorithm that is known is passed over, as clients do.
        """
        known = self.rules.get(room_id)
        if known is not None and known.get("algorithm") == MEGOLM != rules.get("algorithm"):
            return known
        kept = {name: rules[name] for name in _RULES if isinstance(rules.get(name), str | int)}
        if kept != known:
            self.rules[room_id] = kept
            self.vault.sql("INSERT OR REPLACE INTO musher_rooms VALUES (?, ?)", room_id, json.dumps(kept))
        return kept

    def outbound(self, room_id: str, rotation_ms: object, rotation_messages: object) -> OutboundGroupSession:
        """The key that the bot writes with in a room, made anew when it has done its time."""
        session = self.olm.outbound_group_sessions.get(room_id)
        if session is None or session.expired:
            session = self.new_outbound(room_id)
        session.max_age = timedelta(milliseconds=_within(rotation_ms, _ROTATION_MS, _ROTATION_MS[1]))
        session.max_messages = _within(rotation_messages, _ROTATION_MESSAGES, 100)
        return session if not session.expired else self.new_outbound(room_id)

    def new_outbound(self, room_id: str) -> OutboundGroupSession:
        """A new key for what the bot writes in a room."""
        self.olm.create_outbound_group_session(room_id)
        return self.olm.outbound_group_sessions[room_id]

    def write(self, session: OutboundGroupSession, room_id: str, kind: str, content: Json) -> Json:
        """Encrypt an event's content."""
        session.mark_as_shared()
        event = {"room_id": room_id, "type": kind, "content": content}
        plaintext = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
        return {
            "algorithm": MEGOLM,
            "sender_key": self.own.identity[0],
            "ciphertext": session.encrypt(plaintext),
            "session_id": session.id,
            "device_id": self.device_id,
        }


def _device_keys(user_id: str, device_id: str, payload: object) -> dict[str, str] | None:
    """The keys of a listed device, if it vouches for them itself."""
    if not isinstance(payload, dict) or not isinstance(payload.get("keys"), dict):
        return None
    ed25519 = payload["keys"].get(f"ed25519:{device_id}")
    curve25519 = payload["keys"].get(f"curve25519:{device_id}")
    if payload.get("user_id") != user_id or payload.get("device_id") != device_id:
        return None
    if not isinstance(ed25519, str) or not isinstance(curve25519, str):
        return None
    if not is_signed(payload, user_id, f"ed25519:{device_id}", ed25519):
        return None
    return {"ed25519": ed25519, "curve25519": curve25519}


def _within(value: object, limits: tuple[int, int], default: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        return default
    return min(max(value, limits[0]), limits[1])
