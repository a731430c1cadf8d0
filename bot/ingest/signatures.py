"""How deliveries prove that they come from their sender: one class per scheme. Pure.

Every configured secret is tried, and none is compared in a time that depends on the guess. A failure says nothing about
which part was wrong; its `reason` is for the operator's log.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import ClassVar, Final, Protocol

from multidict import CIMultiDict, CIMultiDictProxy

from bot.ingest.bearer import BearerTokens
from bot.ingest.refusals import Unauthorized, Unproven

Headers = CIMultiDict[str] | CIMultiDictProxy[str]

TOLERANCE_S: Final = 300.0
"""How far a signed timestamp may lie from our clock, both ways; the value of the Standard Webhooks libraries."""

WHSEC: Final = "whsec_"


class Scheme(Protocol):
    """One way of proof. `proves_id` tells whether it covers the delivery's id, and a timestamp with it."""

    proves_id: ClassVar[bool]

    def check_headers(self, headers: Headers, now: float) -> None:
        """Refuse by its headers what can't be proven by any body; `now` is Unix seconds.

        Raises:
            Unproven: a header is missing, repeated, malformed, wrong or too old.
        """

    def verify(self, headers: Headers, body: bytes) -> None:
        """Check the raw body of a delivery whose headers have passed.

        Raises:
            Unproven: no secret makes this signature of this body.
        """


def header(headers: Headers, name: str) -> str:
    """Give the one value of a header.

    Raises:
        Unproven: it is missing, empty or repeated.
    """
    values = headers.getall(name, [])
    if len(values) != 1 or not values[0].strip():
        raise Unproven(f"the header {name} is {'missing' if not values else 'repeated or empty'}")
    return values[0].strip()


class HexHmac:
    """`prefix` and the hex HMAC-SHA256 of the raw body in one header."""

    proves_id: ClassVar[bool] = False

    def __init__(self, secrets: Iterable[str], name: str, prefix: str = "") -> None:
        self._keys = [secret.encode() for secret in secrets]
        self._name = name
        self._prefix = prefix

    def check_headers(self, headers: Headers, now: float) -> None:
        self._given(headers)

    def verify(self, headers: Headers, body: bytes) -> None:
        given = self._given(headers)
        if not _any_equal(given, [hmac.digest(key, body, "sha256") for key in self._keys]):
            raise Unproven("the signature is of another body or another secret")

    def _given(self, headers: Headers) -> bytes:
        text = header(headers, self._name)
        digits = text.removeprefix(self._prefix)
        if not text.startswith(self._prefix) or len(digits) != 2 * sha256().digest_size:
            raise Unproven(f"the header {self._name} has another form")
        try:
            return bytes.fromhex(digits)
        except ValueError:
            raise Unproven(f"the header {self._name} has another form") from None


class StandardWebhooks:
    """The Standard Webhooks specification 1.0: `v1,<base64>` of the HMAC-SHA256 of `{id}.{timestamp}.{body}`."""

    proves_id: ClassVar[bool] = True

    def __init__(self, secrets: Iterable[str]) -> None:
        self._keys = [key for secret in secrets for key in _standard_keys(secret)]

    def check_headers(self, headers: Headers, now: float) -> None:
        header(headers, "webhook-id")
        header(headers, "webhook-signature")
        stamp = header(headers, "webhook-timestamp")
        if not (stamp.isascii() and stamp.isdigit() and abs(now - int(stamp[:20])) <= TOLERANCE_S):
            raise Unproven(f"the webhook-timestamp is not within {TOLERANCE_S:g} s of this clock")

    def verify(self, headers: Headers, body: bytes) -> None:
        signed = f"{header(headers, 'webhook-id')}.{header(headers, 'webhook-timestamp')}."
        content = signed.encode("utf-8", "surrogateescape") + body
        expected = [hmac.digest(key, content, "sha256") for key in self._keys]
        # Several signatures, split by spaces, are how a sender rotates its secret.
        matches = [_any_equal(given, expected) for given in _v1_signatures(header(headers, "webhook-signature"))]
        if not any(matches):
            raise Unproven("none of the signatures is of this id, timestamp and body with one of the secrets")


class PlainToken:
    """The secret itself in one header; it proves nothing about the body."""

    proves_id: ClassVar[bool] = False

    def __init__(self, secrets: Iterable[str], name: str) -> None:
        self._digests = [sha256(secret.encode()).digest() for secret in secrets]
        self._name = name

    def check_headers(self, headers: Headers, now: float) -> None:
        given = sha256(header(headers, self._name).encode("utf-8", "surrogateescape")).digest()
        if not _any_equal(given, self._digests):
            raise Unproven(f"the header {self._name} has another token")

    def verify(self, headers: Headers, body: bytes) -> None:
        """There is nothing to verify: the headers were all."""


class Bearer:
    """The secret as a bearer token (RFC 6750)."""

    proves_id: ClassVar[bool] = False

    def __init__(self, secrets: Iterable[str]) -> None:
        self._tokens = BearerTokens(secrets)

    def check_headers(self, headers: Headers, now: float) -> None:
        try:
            self._tokens.check(headers)
        except Unauthorized:
            raise Unproven("the Authorization header is missing, or has another token") from None

    def verify(self, headers: Headers, body: bytes) -> None:
        """There is nothing to verify: the headers were all."""


def check_body_time(content: object, name: str, now: float) -> None:
    """Check the time that stands in a signed body, in milliseconds under `name`.

    Raises:
        Unproven: it is missing, or too far from our clock.
    """
    stamp = content.get(name) if isinstance(content, Mapping) else None
    earliest, latest = (now - TOLERANCE_S) * 1000, (now + TOLERANCE_S) * 1000
    # Compared, never calculated with: a number from outside may be too large for a float.
    if isinstance(stamp, bool) or not isinstance(stamp, int | float) or not earliest <= stamp <= latest:
        raise Unproven(f"the {name} is not within {TOLERANCE_S:g} s of this clock")


def _any_equal(given: bytes, expected: Sequence[bytes]) -> bool:
    # A list, so that every one is compared.
    matches = [hmac.compare_digest(given, each) for each in expected]
    return any(matches)


def _standard_keys(secret: str) -> list[bytes]:
    """Give the keys that a secret can stand for: without its prefix, some senders mean base64 and some the text."""
    try:
        decoded = base64.b64decode(secret.removeprefix(WHSEC), validate=True)
    except binascii.Error:
        decoded = b""
    texts = [] if secret.startswith(WHSEC) else [secret.encode()]
    return [key for key in (decoded, *texts) if key]


def _v1_signatures(text: str) -> list[bytes]:
    signatures = []
    for part in text.split()[:10]:
        version, _, encoded = part.partition(",")
        if version == "v1":
            try:
                signatures.append(base64.b64decode(encoded, validate=True))
            except (binascii.Error, ValueError):
                continue  # a signature that can't be read proves nothing; another one may
    return signatures
