"""Checks bearer tokens (RFC 6750) without telling by its timing how near a guess was."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from hashlib import sha256

from multidict import CIMultiDict, CIMultiDictProxy

from bot.ingest.refusals import Unauthorized

Headers = CIMultiDict[str] | CIMultiDictProxy[str]


class BearerTokens:
    """The tokens that open a path; with none, nobody gets in."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests = [_digest(token) for token in tokens if token]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, headers: Headers) -> None:
        """Let a request pass that carries one of the tokens.

        Raises:
            Unauthorized: it has no `Authorization: Bearer` header, several, or one with an unknown token.
        """
        given = _digest(_bearer_token(headers))
        # Equal-length digests, and every one of them is compared: the time is the same for every guess.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if not any(matches):
            raise Unauthorized


def _bearer_token(headers: Headers) -> str:
    values = headers.getall("Authorization", [])
    if len(values) != 1:
        raise Unauthorized
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized
    return token.strip()


def _digest(token: str) -> bytes:
    # The HTTP parser hands over bytes that are not UTF-8 as surrogate escapes.
    return sha256(token.encode("utf-8", "surrogateescape")).digest()
