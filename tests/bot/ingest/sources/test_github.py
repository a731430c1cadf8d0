from __future__ import annotations

from typing import Any

import pytest

from tests.bot.ingest.senders import moves, source

GH = source("github")
API = "https://api.github.com/repos/octo/hello"
REPOSITORY = {"full_name": "octo/hello", "default_branch": "main", "url": API}
PULL = {"number": 2, "title": "Add a door", "draft": False, "merged": False}
ISSUE = {"number": 5, "title": "Drafty", "state_reason": None}
OURS = {"number": 2, "base": {"repo": {"url": API}}}
THEIRS = {"number": 9, "base": {"repo": {"url": "https://api.github.com/repos/fork/hello"}}}
RUN: dict[str, Any] = {"name": "CI", "head_branch": "main", "head_sha": "abc", "conclusion": None, "pull_requests": []}
DEPLOYMENT = {"deployment": {"ref": "v1"}, "deployment_status": {"state": "success", "environment": "production"}}
STATUS = {"field_type": "single_select", "field_name": "Status"}
ITEM = {"content_node_id": "I_1", "node_id": "PVTI_1", "content_type": "Issue"}


def pull(action: str, **more: Any) -> dict[str, Any]:
    extra = {"label": more.pop("label")} if "label" in more else {}
    return {"action": action, "pull_request": PULL | more} | extra


def issue(action: str, **more: Any) -> dict[str, Any]:
    extra = {"label": more.pop("label")} if "label" in more else {}
    return {"action": action, "issue": ISSUE | more} | extra


def run(kind: str, action: str, **more: Any) -> dict[str, Any]:
    return {"action": action, kind: RUN | more}


def item(action: str, **changes: Any) -> dict[str, Any]:
    return {"action": action, "projects_v2_item": ITEM, "changes": {"field_value": changes}}


def release(action: str, **more: Any) -> dict[str, Any]:
    return {"action": action, "release": {"tag_name": "v1", "name": "First", "prerelease": False} | more}


def push(ref: str, **more: Any) -> dict[str, Any]:
    commit = {"message": "Open\n\nthe door"}
    return {"ref": ref, "after": "abcdef0123", "commits": [commit, commit], "head_commit": commit} | more


PR, MAIN = "octo/hello#2", "octo/hello@main"


@pytest.mark.parametrize(
    ("event", "payload", "told"),
    [
        ("pull_request", pull("opened"), (PR, "", "open", "pull_request opened: Add a door")),
        ("pull_request", pull("opened", draft=True), (PR, "", "draft", "pull_request opened: Add a door")),
        ("pull_request", pull("ready_for_review"), (PR, "draft", "open", "pull_request ready_for_review: Add a door")),
        ("pull_request", pull("closed", merged=True), (PR, "open", "merged", "pull_request merged: Add a door")),
        ("pull_request", pull("closed"), (PR, "open", "closed", "pull_request closed: Add a door")),
        ("pull_request", pull("synchronize"), (PR, "open", "open", "pull_request synchronize: Add a door")),
        ("pull_request", pull("labeled", label={"name": "qa"}), (PR, "", "qa", "pull_request labeled: Add a door")),
        ("issues", issue("opened"), ("octo/hello#5", "", "open", "issues opened: Drafty")),
        ("issues", issue("closed"), ("octo/hello#5", "open", "closed", "issues closed: Drafty")),
        (
            "issues",
            issue("closed", state_reason="not_planned"),
            ("octo/hello#5", "open", "not planned", "issues closed: Drafty"),
        ),
        ("issues", issue("labeled", label={"name": "qa"}), ("octo/hello#5", "", "qa", "issues labeled: Drafty")),
        ("issues", issue("unlabeled", label={"name": "qa"}), ("octo/hello#5", "qa", "", "issues unlabeled: Drafty")),
        (
            "projects_v2_item",
            item("edited", **STATUS, **{"from": {"name": "Todo"}, "to": {"name": "Done"}}),
            ("I_1", "Todo", "Done", "projects_v2_item edited: Status"),
        ),
        (
            "projects_v2_item",
            item("edited", field_type="single_select"),
            ("I_1", "", "", "projects_v2_item edited: single_select"),
        ),
        ("projects_v2_item", item("created"), ("I_1", "", "in the project", "projects_v2_item created: Issue")),
        ("workflow_run", run("workflow_run", "requested"), (MAIN, "", "queued", "workflow_run requested: CI")),
        (
            "workflow_run",
            run("workflow_run", "completed", conclusion="failure", pull_requests=[THEIRS, OURS]),
            (PR, "in_progress", "failure", "workflow_run completed: CI"),
        ),
        (
            "workflow_run",
            run("workflow_run", "completed", pull_requests=[THEIRS]),
            (MAIN, "in_progress", "completed", "workflow_run completed: CI"),
        ),
        (
            "workflow_job",
            run("workflow_job", "in_progress", name="test", workflow_name="CI"),
            (MAIN, "queued", "in_progress", "workflow_job in_progress: CI / test"),
        ),
        (
            "check_suite",
            run("check_suite", "completed", conclusion="success", app={"name": "Linter"}),
            (MAIN, "in_progress", "success", "check_suite completed: Linter"),
        ),
        (
            "check_run",
            run("check_run", "rerequested", conclusion="neutral", check_suite={"head_branch": "main"}),
            (MAIN, "neutral", "queued", "check_run rerequested: CI"),
        ),
        ("deployment_status", DEPLOYMENT, ("octo/hello@v1", "", "production", "deployment_status success")),
        ("release", release("published"), ("octo/hello@v1", "", "released", "release published: First")),
        (
            "release",
            release("published", prerelease=True),
            ("octo/hello@v1", "", "prereleased", "release published: First"),
        ),
        ("push", push("refs/heads/main"), (MAIN, "", "main", "push of 2 commits: abcdef0 Open the door")),
    ],
)
def test_the_preset_tells_stories_and_stages(
    event: str, payload: dict[str, Any], told: tuple[str, str, str, str]
) -> None:
    assert moves(GH, {"repository": REPOSITORY} | payload, X_GitHub_Event=event) == told


@pytest.mark.parametrize(
    ("event", "payload", "reason"),
    [
        ("ping", {"zen": "Design for failure."}, "ping: the webhook is set up"),
        ("star", {"action": "created"}, "the preset has nothing for star"),
        ("", {}, "the preset has nothing for a delivery without X-GitHub-Event"),
        ("pull_request", pull("assigned"), "pull_request assigned moves nothing"),
        ("issues", issue("pinned"), "issues pinned moves nothing"),
        ("release", release("created"), "release created moves nothing"),
        ("push", push("refs/heads/x"), "push to refs/heads/x, which is not the default branch"),
        ("push", push("refs/heads/main", deleted=True), "push that deletes the default branch"),
        ("projects_v2_item", item("reordered"), "projects_v2_item reordered moves nothing"),
        ("projects_v2_item", item("edited", field_type="text"), "projects_v2_item edited moves nothing"),
        ("deployment_status", {"deployment": {"ref": "v1"}}, "it has no deployment_status.state"),
        ("pull_request", {"action": "opened"}, "it has no pull_request.number"),
    ],
)
def test_what_moves_nothing_is_ignored_with_its_reason(event: str, payload: dict[str, Any], reason: str) -> None:
    assert moves(GH, {"repository": REPOSITORY} | payload, X_GitHub_Event=event) == reason
