"""Why a request is refused: one class per reason, each with its HTTP status, its stable code and its own message.

Messages may quote names and positions from the request, never its values, and nothing about this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Refusal(Exception):
    """The root of all reasons for which a request is answered with an error and nothing of it is stored."""

    status: ClassVar[int]
    code: ClassVar[str]

    def __init__(self, message: str, *, field: str | None = None, headers: Mapping[str, str] = NO_HEADERS) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.headers = headers


class Malformed(Refusal):
    """The bytes are not what their content type promises."""

    status = 400
    code = "malformed"


class Unauthorized(Refusal):
    """No bearer token that we know came with the request."""

    status = 401
    code = "unauthorized"

    def __init__(self) -> None:
        super().__init__(
            "this needs the header 'Authorization: Bearer TOKEN' with one of the configured tokens",
            headers={"WWW-Authenticate": 'Bearer realm="musher"'},
        )


class Unproven(Refusal):
    """A webhook delivery does not prove that it comes from its source.

    The answer is the same whatever is wrong; `reason` is for the log and holds nothing of the request but names.
    """

    status = 401
    code = "unauthorized"

    def __init__(self, reason: str) -> None:
        super().__init__(
            "this delivery does not prove that it comes from this source: compare its secret with the configured ones",
            headers={"WWW-Authenticate": 'Webhook realm="musher"'},
        )
        self.reason = reason


class NotFound(Refusal):
    """There is nothing at this path."""

    status = 404
    code = "not_found"

    def __init__(self) -> None:
        super().__init__(
            "there is nothing at this path: events are posted to /v1/events, webhooks to /v1/hooks/<source>"
        )


class MethodNotAllowed(Refusal):
    """The path exists, the method does not."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, allowed: str) -> None:
        super().__init__(f"this path takes only {allowed}", headers={"Allow": allowed})


class BodyTooSlow(Refusal):
    """The body was not complete in time."""

    status = 408
    code = "timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the body did not arrive within {seconds:g} s: send it again")


class TooLarge(Refusal):
    """The body, or the number of events in it, is over the limit."""

    status = 413
    code = "too_large"


class UnsupportedMediaType(Refusal):
    """The body is of a type, a charset or an encoding that we don't read."""

    status = 415
    code = "unsupported_media_type"


class ExpectationFailed(Refusal):
    """The client expects something other than `100-continue`."""

    status = 417
    code = "expectation_failed"

    def __init__(self) -> None:
        super().__init__("the only expectation that can be met is 100-continue")


class Unprocessable(Refusal):
    """Well-formed JSON that is no event."""

    status = 422
    code = "invalid_event"


class Internal(Refusal):
    """A fault of ours; the log has the details, the answer has none."""

    status = 500
    code = "internal"

    def __init__(self) -> None:
        super().__init__("something went wrong here; the log of this service says what")


class Unavailable(Refusal):
    """The events can't be taken at present; the same request may succeed later."""

    status = 503

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after)})


class Overloaded(Unavailable):
    """Too many bodies are in flight."""

    code = "overloaded"

    def __init__(self) -> None:
        super().__init__("too many requests are being worked on: send it again later", retry_after=1)


class StorageFull(Unavailable):
    """The disk is full."""

    code = "storage_full"

    def __init__(self) -> None:
        super().__init__("no event was stored, there is no room left: send it again later", retry_after=60)


class StorageUnavailable(Unavailable):
    """The store can't be written."""

    code = "storage_unavailable"

    def __init__(self) -> None:
        super().__init__("no event was stored, the event log can't be written now: send it again later", retry_after=5)
