"""Reads JSON from outside, refusing what parsers disagree about and what could exhaust ours. Pure.

RFC 8259 leaves duplicate keys, NaN and nesting depth to the parser; a sender and a reader that differ there
store different facts, so each of them is an error here.
"""

from __future__ import annotations

import json
import math
import re
from itertools import accumulate
from typing import Final

from bot.ingest.refusals import Malformed

MAX_DEPTH: Final = 64
"""Deepest nesting of arrays and objects; a list of events has 2, a tracker's rich text 4 more with each inner list."""

_BRACKETS: Final = b"[]{}"
_ALL_BUT_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in _BRACKETS)
# The closing quote is optional and the loops are possessive: an open string then takes all that is left,
# so that the time is linear in the body whatever it holds.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_STEPS: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def parse_json(body: bytes) -> object:
    """Turn a body into JSON values.

    Raises:
        Malformed: it is not UTF-8 or not JSON, nests deeper than `MAX_DEPTH`, repeats a key in one object, or holds
            NaN, Infinity or a number that is too large for a float.
    """
    _refuse_deep_nesting(body)
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except UnicodeDecodeError as error:
        raise Malformed(f"the body is not UTF-8: byte {error.start} is wrong") from None
    except json.JSONDecodeError as error:
        raise Malformed(f"the body is not JSON: {error}") from None
    except ValueError:
        # What is left is Python's limit on the digits of an int; its message tells the operator how to lift it.
        raise Malformed("the body holds a number with too many digits") from None


def _refuse_deep_nesting(body: bytes) -> None:
    """Measure the depth before the parser, which recurses, gets to see it."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    brackets = _STRING.sub(b"", body).translate(None, _ALL_BUT_BRACKETS)
    if any(depth > MAX_DEPTH for depth in accumulate(map(_STEPS.__getitem__, brackets))):
        raise Malformed(f"the body nests deeper than {MAX_DEPTH} levels")


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Malformed("an object of the body has the same key twice")
    return members


def _refuse_constant(name: str) -> object:
    raise Malformed(f"the body holds {name}, which is not JSON")


def _finite_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise Malformed("the body holds a number that is too large")
    return number
