from __future__ import annotations

from typing import Any

import pytest

from tests.bot.ingest.senders import moves, source

ISSUE = {"key": "SLED-7", "fields": {"summary": "Mend", "status": {"name": "In Progress"}}}
MOVED = {
    "items": [{"field": "assignee"}, {"field": "status", "fromString": "To Do", "toString": "In Progress", "to": "3"}]
}


def delivery(event: str, **more: Any) -> dict[str, Any]:
    return {"webhookEvent": event, "issue": ISSUE} | more


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (
            delivery("jira:issue_updated", changelog=MOVED),
            ("SLED-7", "To Do", "In Progress", "issue moved: Mend"),
        ),
        (delivery("jira:issue_created"), ("SLED-7", "", "In Progress", "issue created: Mend")),
        (delivery("jira:issue_deleted"), ("SLED-7", "In Progress", "deleted", "issue deleted: Mend")),
        (
            delivery("jira:issue_updated", changelog={"items": [{"field": "summary"}]}),
            "an issue update that leaves the status as it was",
        ),
        (delivery("comment_created"), "the preset has nothing for comment_created"),
        ({}, "the preset has nothing for a delivery without webhookEvent"),
        ({"webhookEvent": "jira:issue_created"}, "it has no issue.key"),
    ],
)
def test_the_preset_tells_status_changes(payload: dict[str, Any], told: tuple[str, str, str, str] | str) -> None:
    assert moves(source("jira"), payload) == told
