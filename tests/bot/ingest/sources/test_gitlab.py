from __future__ import annotations

import time
from typing import Any

import pytest

from tests.bot.ingest.senders import moves, source

GL = source("gitlab")
PROJECT = {"project": {"path_with_namespace": "ship/hull"}}


def labels(*names: str) -> list[dict[str, str]]:
    return [{"title": name} for name in names]


def attributes(kind: str, changes: dict[str, Any] | None = None, **attributes: Any) -> dict[str, Any]:
    return {"object_kind": kind, "object_attributes": {"iid": 4, "title": "Caulk"} | attributes} | {
        "changes": changes or {}
    }


PIPELINE: dict[str, Any] = {"id": 31, "ref": "main", "status": "failed"}
BOARD = {"labels": {"previous": labels("bug", "flow::doing"), "current": labels("bug", "flow::qa")}}


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (attributes("pipeline", **PIPELINE), ("ship/hull@main", "", "failed", "pipeline failed: #31")),
        (
            attributes("pipeline", **PIPELINE, name="Nightly") | {"merge_request": {"iid": 4}},
            ("ship/hull!4", "", "failed", "pipeline failed: Nightly"),
        ),
        (
            attributes("pipeline", **PIPELINE)
            | {"merge_request": {"iid": 4, "source_project_id": 2, "target_project_id": 2}}
            | {"project": PROJECT["project"] | {"id": 2}},
            ("ship/hull!4", "", "failed", "pipeline failed: #31"),
        ),
        (  # of a fork, about a merge request of the project that it was forked from
            attributes("pipeline", **PIPELINE)
            | {"merge_request": {"iid": 4, "source_project_id": 2, "target_project_id": 1}}
            | {"project": PROJECT["project"] | {"id": 2}},
            ("ship/hull@main", "", "failed", "pipeline failed: #31"),
        ),
        (
            {
                "object_kind": "build",
                "ref": "main",
                "build_name": "unit",
                "build_stage": "test",
                "build_status": "running",
            },
            ("ship/hull@main", "", "running", "job running: test / unit"),
        ),
        (attributes("merge_request", action="open"), ("ship/hull!4", "", "open", "merge_request open: Caulk")),
        (
            attributes("merge_request", action="open", draft=True),
            ("ship/hull!4", "", "draft", "merge_request open: Caulk"),
        ),
        (attributes("merge_request", action="merge"), ("ship/hull!4", "open", "merged", "merge_request merge: Caulk")),
        (
            attributes("merge_request", {"draft": {"previous": True, "current": False}}, action="update"),
            ("ship/hull!4", "draft", "open", "merge_request update: Caulk"),
        ),
        (
            attributes("merge_request", action="update", oldrev="abc"),
            ("ship/hull!4", "open", "open", "merge_request update: Caulk"),
        ),
        (
            attributes("merge_request", BOARD, action="update"),
            ("ship/hull!4", "flow::doing", "flow::qa", "merge_request update: Caulk"),
        ),
        (attributes("issue", action="close"), ("ship/hull#4", "open", "closed", "issue close: Caulk")),
        (
            attributes("issue", BOARD, action="update"),
            ("ship/hull#4", "flow::doing", "flow::qa", "issue update: Caulk"),
        ),
        (
            {"object_kind": "deployment", "status": "success", "environment": "staging", "ref": "main"},
            ("ship/hull@main", "", "staging", "deployment success"),
        ),
        (
            {"object_kind": "release", "action": "create", "tag": "v1", "name": "First"},
            ("ship/hull@v1", "", "released", "release create: First"),
        ),
    ],
)
def test_the_preset_tells_stories_and_stages(payload: dict[str, Any], told: tuple[str, str, str, str]) -> None:
    assert moves(GL, PROJECT | payload) == told


def test_twenty_thousand_labels_do_not_hold_up_the_others() -> None:
    before, after = ([{"title": f"{name}{n}"} for n in range(20_000)] for name in ("a", "b"))
    changes = {"labels": {"previous": before, "current": after}}
    began = time.process_time()
    assert moves(GL, PROJECT | attributes("issue", changes, action="update"))[0] == "ship/hull#4"
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (attributes("issue", action="update"), "issue update moves nothing"),
        (attributes("merge_request", action="update"), "merge_request update moves nothing"),
        ({"object_kind": "release", "action": "update"}, "release update moves nothing"),
        ({"object_kind": "note"}, "the preset has nothing for note"),
        (attributes("pipeline", ref="main"), "it has no object_attributes.status"),
    ],
)
def test_what_moves_nothing_is_ignored_with_its_reason(payload: dict[str, Any], reason: str) -> None:
    assert moves(GL, PROJECT | payload, X_Gitlab_Event="Note Hook") == reason
