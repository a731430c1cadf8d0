"""GitHub: pull requests, issues, labels, projects, Actions, checks, deployments, releases and pushes. Pure.

Payloads: docs.github.com, "Webhook events and payloads". A story is `owner/repo#number` where the delivery knows a pull
request or an issue, else `owner/repo@branch`, so that a branch's runs are one story.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from bot.ingest.kind import Kind, Outcome, event_header
from bot.ingest.mapping import Ignored, story
from bot.ingest.payload import Payload
from bot.ingest.signatures import HexHmac

ANSWER_WITHIN_S: Final = 8.0
"""GitHub gives up after 10 s and never delivers again by itself; the rest is for the way."""

_BRANCH: Final = "refs/heads/"
_SHORT_SHA: Final = 7
_STAGE_FIELDS: Final = frozenset({"single_select", "iteration"})


def _preset(event: str, payload: Payload) -> Outcome:
    tell = _PRESETS.get(event)
    if tell is None:
        return Ignored(f"the preset has nothing for {event or 'a delivery without X-GitHub-Event'}")
    return tell(payload)


def _ignored(event: str, payload: Payload) -> Ignored:
    return Ignored(f"{event} {payload.text('action')} moves nothing")


def _numbered(payload: Payload, kind: str) -> str:
    return f"{payload.need('repository.full_name')}#{payload.need(f'{kind}.number')}"


def _pull_request(payload: Payload) -> Outcome:
    action = payload.text("action")
    is_open = "draft" if payload.is_true("pull_request.draft") else "open"
    ended = "merged" if payload.is_true("pull_request.merged") else "closed"
    moves = {
        "opened": ("", is_open),
        "reopened": ("closed", is_open),
        "ready_for_review": ("draft", "open"),
        "converted_to_draft": ("open", "draft"),
        "synchronize": (is_open, is_open),
        "review_requested": (is_open, "review"),
        "enqueued": (is_open, "merge queue"),
        "dequeued": ("merge queue", is_open),
        "closed": (is_open, ended),
    } | _label_moves(payload)
    if action not in moves:
        return _ignored("pull_request", payload)
    happened = ended if action == "closed" else action
    title = payload.text("pull_request.title")
    return story(_numbered(payload, "pull_request"), *moves[action], f"pull_request {happened}", title)


def _issues(payload: Payload) -> Outcome:
    action = payload.text("action")
    reason = payload.text("issue.state_reason")
    moves = {
        "opened": ("", "open"),
        "reopened": ("closed", "open"),
        "closed": ("open", "not planned" if reason == "not_planned" else "closed"),
        "deleted": ("", "deleted"),
        "transferred": ("", "transferred"),
    } | _label_moves(payload)
    if action not in moves:
        return _ignored("issues", payload)
    return story(_numbered(payload, "issue"), *moves[action], f"issues {action}", payload.text("issue.title"))


def _label_moves(payload: Payload) -> dict[str, tuple[str, str]]:
    label = payload.text("label.name")
    return {"labeled": ("", label), "unlabeled": (label, "")} if label else {}


def _projects_v2_item(payload: Payload) -> Outcome:
    action = payload.text("action")
    moves = {
        "created": ("", "in the project"),
        "archived": ("in the project", "archived"),
        "restored": ("archived", "in the project"),
        "converted": ("draft", "issue"),
        "deleted": ("in the project", ""),
        "edited": _field_move(payload),
    }
    field_type = payload.text("changes.field_value.field_type")
    if action not in moves or (action == "edited" and field_type not in _STAGE_FIELDS):
        return _ignored("projects_v2_item", payload)
    # The delivery knows neither the number nor the title of what it moves.
    item = payload.first("projects_v2_item.content_node_id", "projects_v2_item.node_id")
    field = payload.text("changes.field_value.field_name", field_type)
    content = payload.text("projects_v2_item.content_type")
    return story(item, *moves[action], f"projects_v2_item {action}", field or content)


def _field_move(payload: Payload) -> tuple[str, str]:
    old, new = (payload.first(f"changes.field_value.{at}.name", f"changes.field_value.{at}") for at in ("from", "to"))
    return old, new


def _run_story(payload: Payload, run: str, branch: str) -> str:
    repository = payload.need("repository.full_name")
    # A fork's pull request into this repository is listed too, one into another repository by its own number.
    api = payload.text("repository.url")
    for request in payload.each(f"{run}.pull_requests"):
        number = request.text("number")
        if number and request.text("base.repo.url", api) == api:
            return f"{repository}#{number}"
    return f"{repository}@{payload.text(branch) or payload.need(f'{run}.head_sha')}"


def _stages_of_run(payload: Payload, run: str) -> tuple[str, str]:
    """Give the move that an action stands for; a `requested` run may have ended before it was told."""
    before = {"in_progress": "queued", "completed": "in_progress", "waiting": "queued"}
    action = payload.text("action")
    if action == "completed":
        return before[action], payload.text(f"{run}.conclusion", "completed")
    if action in {"requested", "created"}:
        return "", "queued"
    if action == "rerequested":
        return payload.text(f"{run}.conclusion"), "queued"
    if action == "requested_action":
        stage = payload.text(f"{run}.conclusion", payload.text(f"{run}.status"))
        return stage, stage
    return before.get(action, ""), action


def _workflow_run(payload: Payload) -> Outcome:
    name = payload.first("workflow_run.name", "workflow.name", "workflow_run.path")
    return story(
        _run_story(payload, "workflow_run", "workflow_run.head_branch"),
        *_stages_of_run(payload, "workflow_run"),
        f"workflow_run {payload.text('action')}",
        name,
    )


def _workflow_job(payload: Payload) -> Outcome:
    name = " / ".join(filter(None, map(payload.text, ("workflow_job.workflow_name", "workflow_job.name"))))
    return story(
        _run_story(payload, "workflow_job", "workflow_job.head_branch"),
        *_stages_of_run(payload, "workflow_job"),
        f"workflow_job {payload.text('action')}",
        name,
    )


def _check_suite(payload: Payload) -> Outcome:
    return story(
        _run_story(payload, "check_suite", "check_suite.head_branch"),
        *_stages_of_run(payload, "check_suite"),
        f"check_suite {payload.text('action')}",
        payload.first("check_suite.app.name"),
    )


def _check_run(payload: Payload) -> Outcome:
    return story(
        _run_story(payload, "check_run", "check_run.check_suite.head_branch"),
        *_stages_of_run(payload, "check_run"),
        f"check_run {payload.text('action')}",
        payload.first("requested_action.identifier", "check_run.name"),
    )


def _deployment_status(payload: Payload) -> Outcome:
    environment = payload.first("deployment_status.environment", "deployment.environment")
    state = payload.need("deployment_status.state")
    story_id = f"{payload.need('repository.full_name')}@{payload.need('deployment.ref')}"
    return story(story_id, "", environment, f"deployment_status {state}", payload.text("deployment_status.description"))


def _release(payload: Payload) -> Outcome:
    action = payload.text("action")
    released = "prereleased" if payload.is_true("release.prerelease") else "released"
    # GitHub tells one publication as created, published, and released or prereleased: one of them is enough.
    moves = {"published": ("", released), "unpublished": (released, "draft"), "deleted": (released, "deleted")}
    if action not in moves:
        return _ignored("release", payload)
    story_id = f"{payload.need('repository.full_name')}@{payload.need('release.tag_name')}"
    return story(story_id, *moves[action], f"release {action}", payload.text("release.name"))


def _push(payload: Payload) -> Outcome:
    ref, default = payload.need("ref"), payload.need("repository.default_branch")
    if ref != _BRANCH + default:
        return Ignored(f"push to {ref}, which is not the default branch")
    if payload.is_true("deleted"):
        return Ignored("push that deletes the default branch")
    story_id = f"{payload.need('repository.full_name')}@{default}"
    count = sum(1 for _ in payload.each("commits"))
    what = f"push of {count} commit{'' if count == 1 else 's'}" if count else "push"
    head = f"{payload.text('after')[:_SHORT_SHA]} {payload.text('head_commit.message')}"
    return story(story_id, "", default, what, head.strip())


def _ping(payload: Payload) -> Outcome:
    return Ignored("ping: the webhook is set up")


_PRESETS: Final[Mapping[str, Callable[[Payload], Outcome]]] = MappingProxyType(
    {
        "check_run": _check_run,
        "check_suite": _check_suite,
        "deployment_status": _deployment_status,
        "issues": _issues,
        "ping": _ping,
        "projects_v2_item": _projects_v2_item,
        "pull_request": _pull_request,
        "push": _push,
        "release": _release,
        "workflow_job": _workflow_job,
        "workflow_run": _workflow_run,
    }
)

KIND: Final = Kind(
    name="github",
    scheme=lambda secrets: HexHmac(secrets, "X-Hub-Signature-256", "sha256="),
    event_name=event_header("X-GitHub-Event"),
    id_headers=("X-GitHub-Delivery",),
    preset=_preset,
    patience_s=ANSWER_WITHIN_S,
)
