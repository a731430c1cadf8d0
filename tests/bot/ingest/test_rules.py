from __future__ import annotations

import pytest
from multidict import CIMultiDict
from structlog.testing import capture_logs

from bot.config.sections import RuleConfig
from bot.errors import ConfigError
from bot.ingest.rules import Rules
from tests.bot.ingest.senders import mapped, moves, source

MERGED = {
    "when": "event == 'pull_request' && body.action == 'closed' && body.pull_request.merged",
    "story_id": "to_string(body.pull_request.number)",
    "from_stage": "'merge'",
    "to_stage": "'done'",
    "pipeline_event": "'merged'",
}
REST = {"story_id": "body.id", "pipeline_event": "join('.', [event, body.action])"}
PULL = {"action": "closed", "pull_request": {"number": 7, "merged": True}}


def test_the_first_rule_that_matches_wins() -> None:
    gh = source("github", MERGED, REST)
    assert mapped(gh, PULL, X_GitHub_Event="pull_request").by == "rule 1"
    assert moves(gh, PULL, X_GitHub_Event="pull_request") == ("7", "merge", "done", "merged")
    other = mapped(gh, {"id": 9, "action": "opened"}, X_GitHub_Event="issues")
    assert (other.by, other.events[0].story_id, other.events[0].pipeline_event) == ("rule 2", "9", "issues.opened")


def test_with_rules_the_preset_is_silent() -> None:
    assert moves(source("github", MERGED), PULL, X_GitHub_Event="issues") == "none of 1 rules matches"


def test_rules_see_headers_in_lower_case_but_no_proofs() -> None:
    rule = {"story_id": 'headers."x-run"', "pipeline_event": "join(',', sort(keys(headers)))"}
    found = source("bearer", rule).map(
        CIMultiDict({"X-Run": "5", "Authorization": "Bearer x", "X-Gitlab-Token": "x", "Cookie": "x"}), {}
    )
    assert (found.events[0].story_id, found.events[0].pipeline_event) == ("5", "x-run")


def test_a_condition_that_fails_over_a_delivery_does_not_hold() -> None:
    gh = source("github", {**REST, "when": "contains(body.labels, 'bug')"}, {**MERGED, "when": "length(body) > `0`"})
    assert mapped(gh, PULL, X_GitHub_Event="pull_request").by == "rule 2"


def test_a_condition_over_which_python_fails_does_not_hold_and_the_log_says_so() -> None:
    gh = source("github", {**MERGED, "when": "contains(body.action, body.missing)"}, MERGED)
    with capture_logs() as logs:
        assert mapped(gh, PULL, X_GitHub_Event="pull_request").by == "rule 2"
    assert [(line["event"], line["source"], line["rule"]) for line in logs] == [
        ("condition_failed", "github", "rule 1")
    ]


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("body.missing", "story_id must have 1 to 200 characters, it has 0"),
        ("body.list", "its story_id gives an array, not a string"),
        ("body.object", "its story_id gives an object, not a string"),
        ("body.yes", "its story_id gives a boolean, not a string"),
        ("body.half", "its story_id gives a fraction, not a string"),
        ("length(body.missing)", "its story_id fails: "),
        ("contains(body.name, body.missing)", "its story_id fails: 'in <string>' requires string"),
        ("ceil(to_number(body.huge))", "its story_id fails: cannot convert float infinity"),
        ("&body.name", "its story_id gives nothing that JSON has"),
    ],
)
def test_a_rule_that_gives_no_story_says_which_and_why(expression: str, reason: str) -> None:
    body = {"list": [], "object": {}, "yes": True, "half": 0.5, "name": "x", "huge": "1e999"}
    found = mapped(source("bearer", {"story_id": expression, "pipeline_event": "'x'"}), body)
    assert found.by == "rule 1"
    assert found.reason.startswith(reason)


def test_a_rule_cannot_forge_a_gap() -> None:
    forged = {"story_id": "'1'", "pipeline_event": "body.event"}
    assert "which the log keeps for itself" in moves(source("bearer", forged), {"event": "__gap__"})


def test_a_rule_is_compiled_at_the_start_and_its_error_names_it() -> None:
    broken = RuleConfig.model_construct(
        when=None, story_id="'1'", from_stage="''", to_stage="body.[", pipeline_event="'x'"
    )
    with pytest.raises(ConfigError, match=r"source gh: rule 2: to_stage is not JMESPath"):
        Rules("gh", [RuleConfig(**REST), broken])
