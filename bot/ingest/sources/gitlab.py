"""GitLab: pipelines, jobs, merge requests, issues, deployments and releases. Pure.

Payloads: docs.gitlab.com, "Webhook events". A story is `group/project!iid` or `#iid` where the delivery knows a merge
request or an issue, else `group/project@ref`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from bot.ingest.kind import Kind, Outcome, event_header
from bot.ingest.mapping import Ignored, story
from bot.ingest.payload import Payload
from bot.ingest.signatures import WHSEC, PlainToken, Scheme, StandardWebhooks


def _scheme(secrets: Sequence[str]) -> Scheme:
    """Take signing tokens or plain ones; a source with a signing token never takes a plain one."""
    if any(secret.startswith(WHSEC) for secret in secrets):
        return StandardWebhooks(secret for secret in secrets if secret.startswith(WHSEC))
    return PlainToken(secrets, "X-Gitlab-Token")


def _preset(event: str, payload: Payload) -> Outcome:
    kind = payload.text("object_kind")
    tell = _PRESETS.get(kind)
    return tell(payload) if tell else Ignored(f"the preset has nothing for {kind or event or 'this'}")


def _project(payload: Payload) -> str:
    return payload.text("project.path_with_namespace") or payload.need("project_name")


def _pipeline(payload: Payload) -> Outcome:
    project = _project(payload)
    # The pipeline of a fork knows a merge request of another project, which it names by a number only.
    is_ours = payload.text("merge_request.target_project_id") in ("", payload.text("project.id"))
    iid = payload.text("merge_request.iid") if is_ours else ""
    story_id = f"{project}!{iid}" if iid else f"{project}@{payload.need('object_attributes.ref')}"
    status = payload.need("object_attributes.status")
    name = payload.text("object_attributes.name") or f"#{payload.need('object_attributes.id')}"
    return story(story_id, "", status, f"pipeline {status}", name)


def _job(payload: Payload) -> Outcome:
    status = payload.need("build_status")
    name = f"{payload.text('build_stage')} / {payload.need('build_name')}"
    return story(f"{_project(payload)}@{payload.need('ref')}", "", status, f"job {status}", name)


def _merge_request(payload: Payload) -> Outcome:
    action = payload.text("object_attributes.action")
    is_open = "draft" if _is_draft(payload) else "open"
    moves = {
        "open": ("", is_open),
        "reopen": ("closed", is_open),
        "close": (is_open, "closed"),
        "merge": (is_open, "merged"),
        "approved": (is_open, "approved"),
        "approval": (is_open, "approval"),
        "unapproved": ("approved", is_open),
        "unapproval": ("approval", is_open),
    }
    move = moves.get(action) or _update(payload, is_open)
    if move is None:
        return Ignored(f"merge_request {action} moves nothing")
    story_id = f"{_project(payload)}!{payload.need('object_attributes.iid')}"
    return story(story_id, *move, f"merge_request {action}", payload.text("object_attributes.title"))


def _is_draft(payload: Payload) -> bool:
    return payload.is_true("object_attributes.draft") or payload.is_true("object_attributes.work_in_progress")


def _update(payload: Payload, stage: str) -> tuple[str, str] | None:
    drafts = payload.at("changes.draft.previous"), payload.at("changes.draft.current")
    if all(isinstance(draft, bool) for draft in drafts):
        before, after = ("draft" if draft else "open" for draft in drafts)
        return before, after
    if payload.text("object_attributes.oldrev"):  # new commits
        return stage, stage
    return _label_move(payload)


def _label_move(payload: Payload) -> tuple[str, str] | None:
    """Give the labels that went and those that came, which is how boards move."""
    # Dictionaries keep the order of a list, and know in no time whether they hold a name.
    before, after = (
        dict.fromkeys(label.text("title") for label in payload.each(f"changes.labels.{when}"))
        for when in ("previous", "current")
    )
    gone, come = [name for name in before if name not in after], [name for name in after if name not in before]
    return (", ".join(gone), ", ".join(come)) if gone or come else None


def _issue(payload: Payload) -> Outcome:
    action = payload.text("object_attributes.action")
    moves = {"open": ("", "open"), "close": ("open", "closed"), "reopen": ("closed", "open")}
    move = moves.get(action) or _label_move(payload)
    if move is None:
        return Ignored(f"issue {action} moves nothing")
    story_id = f"{_project(payload)}#{payload.need('object_attributes.iid')}"
    return story(story_id, *move, f"issue {action}", payload.text("object_attributes.title"))


def _deployment(payload: Payload) -> Outcome:
    status = payload.need("status")
    ref = payload.text("ref") or payload.need("short_sha")
    commit = payload.text("commit_title")
    return story(f"{_project(payload)}@{ref}", "", payload.need("environment"), f"deployment {status}", commit)


def _release(payload: Payload) -> Outcome:
    action = payload.text("action")
    moves = {"create": ("", "released"), "delete": ("released", "deleted")}
    if action not in moves:
        return Ignored(f"release {action} moves nothing")
    story_id = f"{_project(payload)}@{payload.need('tag')}"
    return story(story_id, *moves[action], f"release {action}", payload.text("name"))


_PRESETS: Final[Mapping[str, Callable[[Payload], Outcome]]] = MappingProxyType(
    {
        "build": _job,
        "deployment": _deployment,
        "issue": _issue,
        "merge_request": _merge_request,
        "pipeline": _pipeline,
        "release": _release,
        "work_item": _issue,
    }
)

KIND: Final = Kind(
    name="gitlab",
    scheme=_scheme,
    event_name=event_header("X-Gitlab-Event"),
    id_headers=("webhook-id", "Idempotency-Key", "X-Gitlab-Event-UUID"),
    preset=_preset,
)
