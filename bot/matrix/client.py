"""The bot's seat at its homeserver: log in once, then sync, send and see to rooms as that one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from bot.matrix import send
from bot.matrix.e2ee import Counts, Encryption, EncryptionSettings, SeenKeys, Settings, judge
from bot.matrix.errors import (
    KeysLost,
    LoggedOut,
    LoginRefused,
    MatrixError,
    NotAHomeserver,
    Refused,
    StillLoggedIn,
    Unreachable,
)
from bot.matrix.model import Credentials, Identity, SyncBatch, TriedLogin
from bot.matrix.room_rules import RoomRules
from bot.matrix.rooms import Rooms
from bot.matrix.second_asks import USUAL, SecondAsks
from bot.matrix.sync import Sync
from bot.matrix.wire import CLIENT_API, Wire

log = structlog.get_logger(__name__)

DEVICE_NAME: Final = "Musher"
"""What people see in the list of the account's devices."""
CHECK_NAME: Final = "Musher (check)"
"""The same for the moment that `try_login` takes."""

_CHECK_PASSWORD: Final = (
    "check matrix.user_id and matrix.password, or, where the server has no password login, "
    "set matrix.access_token and matrix.device_id"
)
_CHECK_TOKEN: Final = "set a matrix.access_token and matrix.device_id that belong to matrix.user_id"
_NEW_STORE: Final = "set matrix.user_id back, or point store.path at a new file for another account"


class MatrixClient:
    """Everything that the bot does at its homeserver. All methods raise `MatrixError`s only; none repeats by itself."""

    def __init__(
        self,
        credentials: Credentials,
        encryption: EncryptionSettings | None = None,
        settings: Settings | None = None,
        *,
        on_silence: Callable[[], None] | None = None,
    ) -> None:
        """With `encryption`, rooms may be encrypted; `settings` then keep what must outlive the key file.

        With `on_silence`, what the homeserver does not answer in time is asked again, and it is told of that.
        """
        self._credentials = credentials
        second_asks = None if on_silence is None else SecondAsks(on_silence)
        self._wire = Wire(credentials.homeserver, credentials.user_id, second_asks)
        self._rooms = Rooms()
        self._encryption: Encryption | None = None
        if encryption is not None:
            if settings is None:
                raise ValueError("encryption needs settings to keep its identity in")
            self._encryption = Encryption(self._wire, settings, encryption)
        self._room_rules = RoomRules(self._wire, self._rooms, self._encryption)
        self._sync = Sync(self._wire, self._rooms, self._encryption)
        self._made: Identity | None = None
        """The newest login that was made here. The caller has stored it only if `connect` has returned it."""
        self._lost: Identity | None = None

    @property
    def user_id(self) -> str:
        return self._credentials.user_id

    @property
    def access_token(self) -> str:
        """The login that requests are made with, also while `connect` is still seeing to it."""
        return self._wire.access_token

    async def connect(self, stored: Identity | None = None) -> Identity:
        """Log in and return the login, which the caller stores and hands back as `stored` at the next start.

        A login that is still valid is used again: first one that an earlier call has made, then the stored one, then
        the configured access token. Only when none is, the password makes a new login, of the same device. May be
        called again, after `LoggedOut` and after it has failed.

        A device whose encryption keys are lost is given up for a new one, by password; once the caller has stored that,
        it is to call `retire_lost_device`.

        Raises `Unreachable`, `RateLimited`, `NotAHomeserver`, `LoginRefused`, `LoggedOut` when a token is refused and
        there is no password, and `KeysLost` when the keys are lost and there is no password.
        """
        self._refuse_another_account(stored)
        await self.check_homeserver()
        identity = await self._resume_any(stored)
        if identity is None:
            identity = self._made = await self._log_in(self._password(), self._device_id(stored), DEVICE_NAME)
        if self._encryption is None:
            return identity
        try:
            await self._encryption.open(identity)
        except KeysLost as lost:
            if self._credentials.password is None:
                raise
            log.error("key_store_lost", device=lost.device_id, problem=lost.problem, action="a new device is made")
            self._lost = identity
            identity = self._made = await self._log_in(self._credentials.password, None, DEVICE_NAME)
            await self._encryption.open(identity)
        return identity

    async def retire_lost_device(self) -> None:
        """Delete a device whose keys are lost, and its key file, now that its successor is stored."""
        lost, self._lost = self._lost, None
        if lost is None or self._encryption is None:
            return
        try:
            await self._wire.log_out(lost.access_token)
        except MatrixError as error:
            log.warning("lost_device_stays", device=lost.device_id, reason=str(error), advice="remove it in any client")
        await self._encryption.retire_former_devices()

    async def try_login(self, stored: Identity | None = None) -> TriedLogin:
        """Find out whether `connect` would get in, and leave nothing behind.

        As `connect`, but where only the password is left to try, it makes a login on a device of its own (`CHECK_NAME`)
        and logs that out at once, which deletes the device. The stored device is never logged in anew: logging out
        would delete that one. Raises as `connect` does, and `StillLoggedIn`.
        """
        self._refuse_another_account(stored)
        resumed = await self._resume_any(stored)
        if resumed is not None:
            return TriedLogin(resumed.device_id, by_password=False)
        tried = await self._log_in(self._password(), None, CHECK_NAME)
        try:
            await self._wire.post("logout", body={})
        except MatrixError as error:
            raise StillLoggedIn(tried.user_id, tried.device_id) from error
        return TriedLogin(tried.device_id, by_password=True)

    async def seen_keys(self, stored: Identity) -> SeenKeys:
        """What others see of the bot's encryption keys: asked as the stored login, without touching the keys at hand.

        Raises `LoggedOut` when that login has ended.
        """
        self._refuse_another_account(stored)
        await self._resume(stored.access_token, stored.device_id)
        answer = await self._wire.post("keys", "query", body={"device_keys": {stored.user_id: []}})
        return judge(answer, stored.user_id, stored.device_id)

    async def close(self) -> None:
        """Close the connections and the key file. The login stays valid."""
        if self._encryption is not None:
            await self._encryption.close()
        await self._wire.close()

    async def sync(self, since: str | None, timeout_ms: int) -> SyncBatch:
        """Wait up to `timeout_ms` milliseconds for what is new since the token; see `bot.matrix.sync`."""
        return await self._sync.step(since, timeout_ms)

    async def send(self, room_id: str, event_type: str, content: Mapping[str, Any], txn_id: str) -> str:
        """Send one event, encrypted where the room is, and return its id; the same `txn_id` again returns the same id.

        Raises `EncryptedRoom` (without encryption), `UnknownEncryption`, `NotInRoom`, `Forbidden`, `Refused` (`errcode`
        M_TOO_LARGE: over 64 KiB as an event), and what passes by itself.
        """
        return await send.send(
            self._wire,
            self._room_rules,
            self._encryption,
            room_id,
            event_type=event_type,
            content=content,
            txn_id=txn_id,
        )

    def announce(self, room_id: str) -> None:
        """Something is sent into the room in a moment: find out already what has to be known for that."""
        self._room_rules.ask_ahead(room_id)

    async def typing(self, room_id: str, on: bool, timeout_ms: int = 30_000) -> None:
        """Show or hide the typing notice."""
        await send.typing(self._wire, room_id, on, timeout_ms)

    async def join(self, room_id: str) -> None:
        """Accept an invitation. Raises `Forbidden` when it has been withdrawn."""
        await send.join(self._wire, room_id)

    async def leave(self, room_id: str) -> None:
        """Leave a room, or decline an invitation. Raises `NotInRoom` where there was neither."""
        await send.leave(self._wire, room_id)

    async def forget_room(self, room_id: str) -> None:
        """Have the homeserver forget a room that was left."""
        await send.forget_room(self._wire, room_id)

    async def find_own(self, room_id: str, delivery_id: str) -> str | None:
        """The id of the bot's own event that carries `delivery_id` in its content, or `None`."""
        return await send.find_own(self._wire, room_id, delivery_id)

    async def is_public(self, room_id: str) -> bool:
        """Whether strangers may join the room or read it. Raises `NotInRoom`."""
        return await send.is_public(self._wire, self._rooms, room_id)

    @property
    def encryption_counts(self) -> Counts | None:
        """What encryption has done since the start, and how many messages wait for their keys."""
        return None if self._encryption is None else self._encryption.counts

    async def check_homeserver(self) -> list[str]:
        """Return the versions of the Matrix specification that the server speaks. Needs no login.

        Raises `Unreachable`, `RateLimited` and `NotAHomeserver`.
        """
        try:
            # Synapse checks even here the token of a request that carries one, and this one may have been revoked.
            answer = await self._wire.request("GET", "/_matrix/client/versions", as_nobody=True, patience=USUAL)
        except Refused as error:
            raise NotAHomeserver(self._wire.homeserver, error.message) from error
        except Unreachable as error:
            if error.status is None or error.status >= 500:
                raise
            raise NotAHomeserver(self._wire.homeserver, error.problem) from error
        versions = answer.get("versions")
        if not isinstance(versions, list):
            raise NotAHomeserver(self._wire.homeserver, "its answer lists no versions")
        return [version for version in versions if isinstance(version, str)]

    def _refuse_another_account(self, stored: Identity | None) -> None:
        if stored is not None and stored.user_id != self.user_id:
            raise self._refused(f"the database holds the login of {stored.user_id}", _NEW_STORE)

    async def _resume_any(self, stored: Identity | None) -> Identity | None:
        """Take up the first login that is still valid; `None` where only the password is left."""
        refused: LoggedOut | None = None
        for token, device_id in self._tokens(stored):
            try:
                return await self._resume(token, device_id)
            except LoggedOut as error:
                refused = error
                log.warning("login_ended_by_homeserver", user=self.user_id, device=device_id, soft=error.soft)
        if refused is not None and self._credentials.password is None:
            raise refused
        return None

    def _password(self) -> str:
        if self._credentials.password is None:
            raise self._refused("there is neither a password nor an access token", _CHECK_PASSWORD)
        return self._credentials.password

    def _tokens(self, stored: Identity | None) -> list[tuple[str, str | None]]:
        """The access tokens to try, in order, with the device that each is said to belong to."""
        tokens: dict[str, str | None] = {
            known.access_token: known.device_id for known in (self._made, stored) if known is not None
        }
        if self._credentials.access_token is not None:
            tokens.setdefault(self._credentials.access_token, self._credentials.device_id)
        return list(tokens.items())

    def _device_id(self, stored: Identity | None) -> str | None:
        return stored.device_id if stored is not None else self._credentials.device_id

    async def _resume(self, token: str, device_id: str | None) -> Identity:
        self._wire.adopt(Identity(self.user_id, device_id or "", token))
        answer = await self._wire.get("account", "whoami")
        identity = self._identity(answer | {"access_token": token}, device_id)
        self._wire.adopt(identity)
        log.info("login_resumed", user=identity.user_id, device=identity.device_id)
        return identity

    async def _log_in(self, password: str, device_id: str | None, device_name: str) -> Identity:
        body: dict[str, Any] = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self.user_id},
            "password": password,
            "initial_device_display_name": device_name,
        }
        if device_id is not None:
            body["device_id"] = device_id
        try:
            answer = await self._wire.request("POST", f"{CLIENT_API}/login", body=body, as_nobody=True, patience=None)
        except (Refused, LoggedOut) as error:
            reason = error.message if isinstance(error, Refused) else "the account is closed"
            raise self._refused(reason, _CHECK_PASSWORD) from error
        identity = self._identity(answer, device_id)
        self._wire.adopt(identity)
        log.info("logged_in", user=identity.user_id, device=identity.device_id)
        return identity

    def _identity(self, answer: Mapping[str, Any], device_id: str | None) -> Identity:
        """Check that the answer of a login or whoami speaks of the right account and device."""
        user_id, device, token = answer.get("user_id"), answer.get("device_id", device_id), answer.get("access_token")
        if not isinstance(user_id, str) or not isinstance(token, str):
            raise Unreachable(self._wire.homeserver, "a login without its user or token")
        if user_id != self.user_id:
            raise self._refused(f"the login belongs to {user_id}", _CHECK_TOKEN)
        if not isinstance(device, str) or not device:
            raise self._refused("the access token belongs to no device", _CHECK_TOKEN)
        if device_id is not None and device != device_id:
            raise self._refused(f"the login belongs to the device {device}, not {device_id}", _CHECK_TOKEN)
        return Identity(user_id, device, token)

    def _refused(self, reason: str, advice: str) -> LoginRefused:
        return LoginRefused(self.user_id, self._wire.homeserver, reason, advice)
