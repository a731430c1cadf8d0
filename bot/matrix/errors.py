"""What can go wrong between Musher and its homeserver, one class per state of the world.

`Unreachable` and `RateLimited` pass by themselves: try again later. All others last until somebody does something.
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
