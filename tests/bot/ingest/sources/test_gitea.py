from __future__ import annotations

from typing import Any

import pytest

from tests.bot.ingest.senders import moves, source

REPOSITORY = {"repository": {"full_name": "dock/crane", "default_branch": "main"}}
RUN = {"head_branch": "main", "conclusion": "success", "display_title": "Lift", "head_sha": "abc"}
FORGEJO_RUN = {"prettyref": "main", "workflow_id": "ci.yml", "repository": REPOSITORY["repository"]}


def pull(action: str, **more: Any) -> dict[str, Any]:
    return {"action": action, "number": 3, "pull_request": {"number": 3, "title": "Lift"} | more}


def issue(action: str, **more: Any) -> dict[str, Any]:
    return {"action": action, "number": 8, "issue": {"number": 8, "title": "Rope"} | more}


@pytest.mark.parametrize("kind", ["gitea", "forgejo"])
@pytest.mark.parametrize(
    ("event", "payload", "told"),
    [
        ("pull_request", pull("opened"), ("dock/crane#3", "", "open", "pull_request opened: Lift")),
        (
            "pull_request",
            pull("closed", merged=True),
            ("dock/crane#3", "open", "merged", "pull_request merged: Lift"),
        ),
        (
            "pull_request_sync",
            pull("synchronized"),
            ("dock/crane#3", "open", "open", "pull_request synchronized: Lift"),
        ),
        (
            "pull_request_label",
            pull("label_updated", labels=[{"name": "qa"}, {"name": "hot"}]),
            ("dock/crane#3", "", "qa, hot", "pull_request label_updated: Lift"),
        ),
        ("issues", issue("opened"), ("dock/crane#8", "", "open", "issues opened: Rope")),
        ("issues", issue("closed"), ("dock/crane#8", "open", "closed", "issues closed: Rope")),
        (
            "issue_label",
            issue("label_updated", labels=[{"name": "qa"}]),
            ("dock/crane#8", "", "qa", "issues label_updated: Rope"),
        ),
        (
            "push",
            {"ref": "refs/heads/main", "after": "abcdef012", "total_commits": 1, "head_commit": {"message": "Go"}},
            ("dock/crane@main", "", "main", "push of 1 commit: abcdef0 Go"),
        ),
        (
            "workflow_run",
            {"action": "completed", "workflow_run": RUN, "workflow": {"name": "CI"}},
            ("dock/crane@main", "in_progress", "success", "workflow_run completed: CI"),
        ),
        (
            "workflow_job",
            {"action": "queued", "workflow_job": RUN | {"name": "unit"}},
            ("dock/crane@main", "", "queued", "workflow_job queued: unit"),
        ),
        (
            "release",
            {"action": "published", "release": {"tag_name": "v1", "name": "First"}},
            ("dock/crane@v1", "", "released", "release published: First"),
        ),
        (
            "action_run_failure",
            {"action": "failure", "run": FORGEJO_RUN, "prior_status": "running"},
            ("dock/crane@main", "running", "failure", "action_run failure: ci.yml"),
        ),
    ],
)
def test_the_preset_tells_stories_and_stages(
    kind: str, event: str, payload: dict[str, Any], told: tuple[str, str, str, str]
) -> None:
    assert moves(source(kind), REPOSITORY | payload, **{f"X-{kind}-Event": event}) == told


@pytest.mark.parametrize(
    ("event", "payload", "reason"),
    [
        ("pull_request", pull("assigned"), "pull_request assigned moves nothing"),
        ("issues", issue("milestoned"), "issues milestoned moves nothing"),
        ("push", {"ref": "refs/heads/x"}, "push to refs/heads/x, which is not the default branch"),
        ("release", {"action": "updated"}, "release updated moves nothing"),
        ("workflow_run", {"action": "odd"}, "workflow_run odd moves nothing"),
        ("wiki", {}, "the preset has nothing for wiki"),
    ],
)
def test_what_moves_nothing_is_ignored_with_its_reason(event: str, payload: dict[str, Any], reason: str) -> None:
    assert moves(source("gitea"), REPOSITORY | payload, X_Gitea_Event=event) == reason


def test_each_listens_to_its_own_headers() -> None:
    assert "without an event header" in str(moves(source("forgejo"), {}, X_Gitea_Event="push"))
