from __future__ import annotations

import pytest
from multidict import CIMultiDict

from bot.ingest.bearer import BearerTokens
from bot.ingest.refusals import Unauthorized

TOKENS = BearerTokens(["first", "second", "dritter-schlüssel"])


@pytest.mark.parametrize("value", ["Bearer first", "bearer second", "BEARER  first ", "Bearer dritter-schlüssel"])
def test_each_of_the_tokens_opens(value: str) -> None:
    TOKENS.check(CIMultiDict({"Authorization": value}))


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "Bearer third", "Bearer firs", "Bearer firstt", "Basic first", "first", "Bearer \udcff"],
)
def test_anything_else_does_not(value: str) -> None:
    with pytest.raises(Unauthorized):
        TOKENS.check(CIMultiDict({"Authorization": value}))


def test_a_request_needs_exactly_one_such_header() -> None:
    with pytest.raises(Unauthorized):
        TOKENS.check(CIMultiDict())
    with pytest.raises(Unauthorized):
        TOKENS.check(CIMultiDict([("Authorization", "Bearer first"), ("Authorization", "Bearer first")]))


def test_an_empty_token_is_no_token() -> None:
    nobody = BearerTokens([""])
    assert not nobody
    for value in ("Bearer ", "Bearer"):
        with pytest.raises(Unauthorized):
            nobody.check(CIMultiDict({"Authorization": value}))
