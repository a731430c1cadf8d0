"""Gitea: pull requests, issues, pushes, releases, workflow runs and jobs. Pure.

Payloads: docs.gitea.com, "Webhooks", and the structs of its `modules/structs/hook.go`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from bot.ingest.kind import Kind, Outcome, event_header
from bot.ingest.mapping import Ignored, story
from bot.ingest.payload import Payload
from bot.ingest.signatures import HexHmac

ANSWER_WITHIN_S: Final = 4.0
"""Gitea and Forgejo give up after 5 s (`[webhook] DELIVER_TIMEOUT`) and never deliver again by themselves."""

_BRANCH: Final = "refs/heads/"
_SHORT_SHA: Final = 7


def preset(event: str, payload: Payload) -> Outcome:
    """Map a delivery of Gitea, or of Forgejo, which shares the format."""
    # A label, a review and an assignment come as kinds of their own, named after what they happen to.
    tell = _PRESETS.get(event.removesuffix("_label"))
    if tell is None:
        return Ignored(f"the preset has nothing for {event or 'a delivery without an event header'}")
    return tell(payload)


def _ignored(event: str, payload: Payload) -> Ignored:
    return Ignored(f"{event} {payload.text('action')} moves nothing")


def _labels(payload: Payload, kind: str) -> str:
    """Give all labels that are there now; the delivery does not say which of them is new."""
    return ", ".join(filter(None, (label.text("name") for label in payload.each(f"{kind}.labels"))))


def _pull_request(payload: Payload) -> Outcome:
    action = payload.text("action")
    is_open = "draft" if payload.is_true("pull_request.draft") else "open"
    ended = "merged" if payload.is_true("pull_request.merged") else "closed"
    moves = {
        "opened": ("", is_open),
        "reopened": ("closed", is_open),
        "synchronized": (is_open, is_open),
        "review_requested": (is_open, "review"),
        "closed": (is_open, ended),
        "label_updated": ("", _labels(payload, "pull_request")),
        "label_cleared": ("", ""),
    }
    if action not in moves:
        return _ignored("pull_request", payload)
    number = payload.text("pull_request.number") or payload.need("number")
    happened = ended if action == "closed" else action
    story_id = f"{payload.need('repository.full_name')}#{number}"
    return story(story_id, *moves[action], f"pull_request {happened}", payload.text("pull_request.title"))


def _issues(payload: Payload) -> Outcome:
    action = payload.text("action")
    moves = {
        "opened": ("", "open"),
        "reopened": ("closed", "open"),
        "closed": ("open", "closed"),
        "deleted": ("", "deleted"),
        "label_updated": ("", _labels(payload, "issue")),
        "label_cleared": ("", ""),
    }
    if action not in moves:
        return _ignored("issues", payload)
    number = payload.text("issue.number") or payload.need("number")
    story_id = f"{payload.need('repository.full_name')}#{number}"
    return story(story_id, *moves[action], f"issues {action}", payload.text("issue.title"))


def _push(payload: Payload) -> Outcome:
    ref, default = payload.need("ref"), payload.need("repository.default_branch")
    if ref != _BRANCH + default:
        return Ignored(f"push to {ref}, which is not the default branch")
    count = payload.text("total_commits") or str(sum(1 for _ in payload.each("commits")))
    head = f"{payload.text('after')[:_SHORT_SHA]} {payload.text('head_commit.message')}"
    story_id = f"{payload.need('repository.full_name')}@{default}"
    return story(story_id, "", default, f"push of {count} commit{'' if count == '1' else 's'}", head.strip())


def _release(payload: Payload) -> Outcome:
    action = payload.text("action")
    released = "prereleased" if payload.is_true("release.prerelease") else "released"
    moves = {"published": ("", released), "deleted": (released, "deleted")}
    if action not in moves:
        return _ignored("release", payload)
    story_id = f"{payload.need('repository.full_name')}@{payload.need('release.tag_name')}"
    return story(story_id, *moves[action], f"release {action}", payload.text("release.name"))


def _workflow(kind: str) -> Callable[[Payload], Outcome]:
    def tell(payload: Payload) -> Outcome:
        action = payload.text("action")
        ended = payload.first(f"{kind}.conclusion", f"{kind}.status") or "completed"
        moves = {
            "requested": ("", "queued"),
            "queued": ("", "queued"),
            "waiting": ("queued", "waiting"),
            "in_progress": ("queued", "in_progress"),
            "completed": ("in_progress", ended),
        }
        if action not in moves:
            return _ignored(kind, payload)
        branch = payload.text(f"{kind}.head_branch") or payload.need(f"{kind}.head_sha")
        name = payload.first("workflow.name", f"{kind}.name", f"{kind}.display_title", f"{kind}.path")
        return story(f"{payload.need('repository.full_name')}@{branch}", *moves[action], f"{kind} {action}", name)

    return tell


def _action_run(payload: Payload) -> Outcome:
    """Tell the end of a run as Forgejo does it, which has no kind for its beginning."""
    repository = payload.first("repository.full_name", "run.repository.full_name") or payload.need("repository")
    branch = payload.first("run.prettyref", "run.head_branch", "run.commit_sha") or payload.need("run.head_sha")
    name = payload.first("run.workflow_id", "run.workflow_name", "run.title")
    outcome = payload.first("action", "run.status")
    return story(f"{repository}@{branch}", payload.text("prior_status"), outcome, f"action_run {outcome}", name)


_PRESETS: Final[Mapping[str, Callable[[Payload], Outcome]]] = MappingProxyType(
    {
        "action_run": _action_run,
        "action_run_cancelled": _action_run,
        "action_run_failure": _action_run,
        "action_run_recover": _action_run,
        "action_run_success": _action_run,
        "issue": _issues,
        "issues": _issues,
        "pull_request": _pull_request,
        "pull_request_review_request": _pull_request,
        "pull_request_sync": _pull_request,
        "push": _push,
        "release": _release,
        "workflow_job": _workflow("workflow_job"),
        "workflow_run": _workflow("workflow_run"),
    }
)

KIND: Final = Kind(
    name="gitea",
    scheme=lambda secrets: HexHmac(secrets, "X-Gitea-Signature"),
    event_name=event_header("X-Gitea-Event"),
    id_headers=("X-Gitea-Delivery",),
    preset=preset,
    patience_s=ANSWER_WITHIN_S,
)
