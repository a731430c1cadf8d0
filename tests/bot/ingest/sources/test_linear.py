from __future__ import annotations

from typing import Any

import pytest

from tests.bot.ingest.senders import moves, source

DATA = {"identifier": "SLED-7", "title": "Mend", "state": {"name": "In Review", "type": "started"}}


def delivery(action: str, **more: Any) -> dict[str, Any]:
    return {"type": "Issue", "action": action, "data": DATA} | more


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (delivery("create"), ("SLED-7", "", "In Review", "issue created: Mend")),
        (delivery("update", updatedFrom={"stateId": "1"}), ("SLED-7", "", "In Review", "issue moved: Mend")),
        (delivery("remove"), ("SLED-7", "In Review", "removed", "issue removed: Mend")),
        (delivery("update", updatedFrom={"title": "x"}), "an issue update that leaves the state as it was"),
        ({"type": "Comment", "action": "create"}, "the preset has nothing for Comment"),
        ({"type": "Issue", "action": "create"}, "it has no data.identifier"),
    ],
)
def test_the_preset_tells_state_changes(payload: dict[str, Any], told: tuple[str, str, str, str] | str) -> None:
    assert moves(source("linear"), payload) == told
