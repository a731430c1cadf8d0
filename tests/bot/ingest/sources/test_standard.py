from __future__ import annotations

from typing import Any

import pytest

from bot.ingest.refusals import Unprocessable
from tests.bot.ingest.senders import mapped, moves, source

NATIVE = {"story_id": "42", "from_stage": "a", "to_stage": "b", "pipeline_event": "Moved"}
CDEVENT = {"context": {"type": "dev.cdevents.change.merged.0.3.0"}, "subject": {"id": "change-1"}}
GUESSED = {"type": "order.shipped", "timestamp": "2026-01-31T09:30:00Z", "data": {"id": 5, "status": "shipped"}}


@pytest.mark.parametrize("kind", ["standard", "bearer"])
@pytest.mark.parametrize(
    ("payload", "told"),
    [(NATIVE, ("42", "a", "b", "Moved")), (CDEVENT, ("change-1", "open", "merged", "change merged"))],
)
def test_our_own_format_and_cdevents_need_no_rule(
    kind: str, payload: dict[str, Any], told: tuple[str, str, str, str]
) -> None:
    assert moves(source(kind), payload) == told
    if kind == "standard":
        assert moves(source(kind), {"type": "x", "data": payload}) == told


def test_an_array_of_events_is_all_of_them() -> None:
    assert len(mapped(source("bearer"), [NATIVE, NATIVE]).events) == 2


def test_one_that_is_meant_as_ours_and_wrong_is_refused() -> None:
    with pytest.raises(Unprocessable) as caught:
        mapped(source("bearer"), [NATIVE, {"story_id": "42"}])
    assert caught.value.field == "[1].from_stage"


def test_the_preset_of_standard_webhooks_guesses() -> None:
    assert moves(source("standard"), GUESSED) == ("5", "", "shipped", "order.shipped")
    assert moves(source("standard"), {"type": "x", "data": {}}) == "the data of x has no id: write a rule for it"
    assert moves(source("standard"), {"data": {"id": 5}}) == "it has no type"


def test_the_preset_of_bearer_does_not() -> None:
    assert moves(source("bearer"), GUESSED) == "it is neither a native event nor a CDEvent: write a rule for it"
