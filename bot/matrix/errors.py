"""What can go wrong between Musher and its homeserver, one class per state of the world.

`Unreachable` (also `KeysUnavailable`) and `RateLimited` pass by themselves: try again later. All others last until
somebody does something.
"""

from __future__ import annotations

from typing import Final

from bot.errors import MusherError

TRANSIENT_ADVICE: Final = (
    "Musher tries again by itself; if this lasts, check matrix.homeserver and that the server is up"
)


class MatrixError(MusherError):
    """The root of every error that `bot.matrix` raises."""


class Unreachable(MatrixError):
    """The homeserver gave no usable answer: no connection, a timeout, a 5xx, or something that is no Matrix answer.

    `status` is the answer's HTTP status, where there was an answer.
    """

    def __init__(self, homeserver: str, problem: str, status: int | None = None) -> None:
        self.homeserver = homeserver
        self.problem = problem
        self.status = status
        super().__init__(f"no usable answer from {homeserver}: {problem}; {TRANSIENT_ADVICE}")


class RateLimited(MatrixError):
    """The homeserver asks for a pause of `retry_after_s` seconds."""

    def __init__(self, homeserver: str, retry_after_s: float) -> None:
        self.homeserver = homeserver
        self.retry_after_s = retry_after_s
        super().__init__(f"{homeserver} asks for a pause of {retry_after_s:g} s; Musher goes on by itself afterwards")


class NotAHomeserver(MatrixError):
    """Something answers at the address, but it does not speak the Matrix client-server API."""

    def __init__(self, url: str, problem: str) -> None:
        self.url = url
        super().__init__(
            f"{url} is no Matrix homeserver: {problem}; set matrix.homeserver to the server's client API address, "
            "like https://matrix.example.org"
        )


class LoginRefused(MatrixError):
    """The homeserver does not accept the configured account."""

    def __init__(self, user_id: str, homeserver: str, reason: str, advice: str) -> None:
        self.user_id = user_id
        self.homeserver = homeserver
        self.reason = reason
        super().__init__(f"{homeserver} refused the login of {user_id}: {reason}; {advice}")


class LoggedOut(MatrixError):
    """The access token is not valid any more; `soft` means that the server kept the device and its keys."""

    def __init__(self, user_id: str, homeserver: str, soft: bool) -> None:
        self.user_id = user_id
        self.homeserver = homeserver
        self.soft = soft
        super().__init__(
            f"{homeserver} has ended the login of {user_id}: set matrix.password, "
            "or a new matrix.access_token with its matrix.device_id, and start Musher again"
        )


class StillLoggedIn(MatrixError):
    """A login that was only tried could not be ended."""

    def __init__(self, user_id: str, device_id: str) -> None:
        self.device_id = device_id
        super().__init__(
            f"the login of {user_id} works, but the device {device_id} that tried it could not be logged out: "
            "remove it from the account's devices with any Matrix client"
        )


class NotInRoom(MatrixError):
    """The bot is not a member of the room, or the homeserver does not know the room."""

    def __init__(self, room_id: str) -> None:
        self.room_id = room_id
        super().__init__(f"the bot is not in the room {room_id}: invite it there")


class Forbidden(MatrixError):
    """The bot may not do this in the room."""

    def __init__(self, room_id: str, reason: str) -> None:
        self.room_id = room_id
        self.reason = reason
        super().__init__(f"not allowed in the room {room_id}: {reason}; give the bot the power level or the invitation")


class RoomReplaced(MatrixError):
    """The room was closed for another one, where its conversation goes on."""

    def __init__(self, room_id: str) -> None:
        self.room_id = room_id
        super().__init__(f"the room {room_id} was replaced by another: invite the bot there")


class EncryptedRoom(MatrixError):
    """The room is end-to-end encrypted; nothing was sent, since it would have been readable by the servers."""

    def __init__(self, room_id: str) -> None:
        self.room_id = room_id
        super().__init__(
            f"the room {room_id} is encrypted and this Musher can't encrypt, so it sent nothing: "
            "use an unencrypted room"
        )


class Refused(MatrixError):
    """The homeserver refused the request for good; the same request will be refused again."""

    def __init__(self, homeserver: str, errcode: str, message: str) -> None:
        self.homeserver = homeserver
        self.errcode = errcode
        self.message = message
        super().__init__(
            f"{homeserver} refused the request with {errcode}: {message}; see the homeserver's log for more"
        )


class PasswordAsked(MatrixError):
    """The homeserver wants the account's password for this request; `session` names the request when it is repeated."""

    def __init__(self, homeserver: str, session: str) -> None:
        self.session = session
        super().__init__(f"{homeserver} wants the account's password for this: set matrix.password and start again")


class UnknownEncryption(MatrixError):
    """The room is encrypted in a way that the bot does not know; nothing was sent."""

    def __init__(self, room_id: str, algorithm: object) -> None:
        self.room_id = room_id
        super().__init__(f"the room {room_id} is encrypted with {algorithm!r}, which is not known, so nothing was sent")


class KeysLost(MatrixError):
    """The device's encryption keys are not, or not any more, at hand: it must be replaced by a new device."""

    def __init__(self, device_id: str, problem: str) -> None:
        self.device_id = device_id
        self.problem = problem
        super().__init__(
            f"the encryption keys of the device {device_id} can't be used: {problem}; put the key file back, "
            "or set matrix.password, or a new matrix.access_token with its matrix.device_id"
        )


class KeysRefused(MatrixError):
    """The homeserver has other keys under the names of those that were uploaded."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the homeserver refused the device's keys: {reason}; Musher makes a new device")


class KeysUnavailable(Unreachable):
    """The key file can't be read or written now: the disk is full, or the file is not the service's to write."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.args = (
            f"the key file {path} can't be used: {problem}; make room on its disk, and let the user that runs Musher "
            "write to it and to its folder",
        )


class KeysDamaged(MatrixError):
    """The key file is not what was written there."""

    def __init__(self, path: str, problem: str) -> None:
        self.problem = problem
        super().__init__(
            f"the key file {path} is damaged: {problem}; start Musher again with matrix.password for a new device"
        )


class PickleKeyWrong(MatrixError):
    """The key file was encrypted with another pickle key."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path} can't be opened with this pickle key: put back matrix.pickle_key, or the file "
            "*.pickle-key beside the database; if it is lost for good, delete the *.keys-* files for a new device"
        )
