"""An event of every type of CDEvents 0.5.1 with the fields that it requires, and what each becomes.

Some types of the version in the making are among them: they shall be told as well, without being listed anywhere.
"""

from __future__ import annotations

from typing import Any

STAMP = "2026-01-31T09:30:00.5Z"
_ENVIRONMENT = {"environment": {"id": "prod-eu"}}
_PACKAGE = "pkg:oci/sled@sha256%3Aabc"
_ARTIFACT = {"artifactId": _PACKAGE}
_REPOSITORY = {"repository": {"id": "octo/hello"}}
_TICKET = {"summary": "Mend", "creator": "alice", "uri": "https://example.org/7"}
_PIPELINE, _TASK = {"pipelineName": "build-all"}, {"taskName": "lint", "pipelineRun": {"id": "run-1"}}
_SUITE = {"testSuite": {"id": "suite-1", "name": "Unit"}, **_ENVIRONMENT}
_CASE = {"testCase": {"id": "case-1", "name": "Bites"}, **_ENVIRONMENT}

# subject, predicate, version of the type, content, and from, to, event of what it becomes
_ROWS: list[tuple[str, str, str, dict[str, Any], str, str, str]] = [
    ("pipelineRun", "queued", "0.3.0", _PIPELINE, "", "queued", ": build-all"),
    ("pipelineRun", "started", "0.3.0", _PIPELINE, "queued", "started", ": build-all"),
    ("pipelineRun", "finished", "0.3.0", {**_PIPELINE, "outcome": "failure"}, "started", "failure", ": build-all"),
    ("taskRun", "queued", "0.1.0", _TASK, "", "queued", ": lint"),
    ("taskRun", "started", "0.3.0", _TASK, "queued", "started", ": lint"),
    ("taskRun", "finished", "0.3.0", {**_TASK, "outcome": "success"}, "started", "success", ": lint"),
    ("repository", "created", "0.3.0", {"name": "hello", "uri": "https://example.org"}, "", "created", ": hello"),
    ("repository", "modified", "0.3.0", {"name": "hello"}, "", "modified", ": hello"),
    ("repository", "deleted", "0.3.0", {"name": "hello"}, "", "deleted", ": hello"),
    ("branch", "created", "0.3.0", _REPOSITORY, "", "created", ": octo/hello"),
    ("branch", "deleted", "0.3.0", _REPOSITORY, "", "deleted", ": octo/hello"),
    ("change", "created", "0.4.0", {**_REPOSITORY, "description": "Door"}, "", "open", ": Door"),
    ("change", "reviewed", "0.3.0", _REPOSITORY, "open", "reviewed", ": octo/hello"),
    ("change", "merged", "0.3.0", _REPOSITORY, "open", "merged", ": octo/hello"),
    ("change", "abandoned", "0.3.0", _REPOSITORY, "open", "abandoned", ": octo/hello"),
    ("change", "updated", "0.3.0", _REPOSITORY, "open", "open", ": octo/hello"),
    ("build", "queued", "0.3.0", {}, "", "queued", ""),
    ("build", "started", "0.3.0", {}, "queued", "started", ""),
    ("build", "finished", "0.3.0", _ARTIFACT, "started", "finished", f": {_PACKAGE}"),
    ("testCaseRun", "queued", "0.3.0", _CASE, "", "queued", ": Bites"),
    ("testCaseRun", "started", "0.3.0", _CASE, "queued", "started", ": Bites"),
    ("testCaseRun", "finished", "0.3.0", {**_CASE, "outcome": "pass"}, "started", "pass", ": Bites"),
    ("testCaseRun", "skipped", "0.2.0", _CASE, "queued", "skipped", ": Bites"),
    ("testSuiteRun", "queued", "0.3.0", _SUITE, "", "queued", ": Unit"),
    ("testSuiteRun", "started", "0.3.0", _SUITE, "queued", "started", ": Unit"),
    ("testSuiteRun", "finished", "0.3.0", {**_SUITE, "outcome": "fail"}, "started", "fail", ": Unit"),
    ("testOutput", "published", "0.3.0", {"outputType": "report", "format": "text/html"}, "", "published", ": report"),
    ("artifact", "packaged", "0.3.0", {"change": {"id": "1"}}, "", "packaged", ""),
    ("artifact", "signed", "0.3.0", {"signature": "x"}, "packaged", "signed", ""),
    ("artifact", "published", "0.3.0", {}, "", "published", ""),
    ("artifact", "downloaded", "0.2.0", {"user": "bob"}, "", "downloaded", ""),
    ("artifact", "deleted", "0.2.0", {"user": "bob"}, "", "deleted", ""),
    ("environment", "created", "0.3.0", {"name": "prod-eu"}, "", "created", ": prod-eu"),
    ("environment", "modified", "0.3.0", {"name": "prod-eu"}, "", "modified", ": prod-eu"),
    ("environment", "deleted", "0.3.0", {"name": "prod-eu"}, "", "deleted", ": prod-eu"),
    ("service", "deployed", "0.3.0", {**_ENVIRONMENT, **_ARTIFACT}, "", "prod-eu", f": {_PACKAGE}"),
    ("service", "upgraded", "0.3.0", {**_ENVIRONMENT, **_ARTIFACT}, "", "prod-eu", f": {_PACKAGE}"),
    ("service", "rolledback", "0.3.0", {**_ENVIRONMENT, **_ARTIFACT}, "", "prod-eu", f": {_PACKAGE}"),
    ("service", "removed", "0.3.0", _ENVIRONMENT, "prod-eu", "removed", ""),
    ("service", "published", "0.3.0", _ENVIRONMENT, "", "published", ""),
    ("deployment", "started", "0.1.0", {**_ENVIRONMENT, **_ARTIFACT}, "queued", "started", f": {_PACKAGE}"),
    ("reconciliation", "finished", "0.1.0", {"outcome": "success"}, "started", "success", ""),
    ("incident", "detected", "0.3.0", {**_ENVIRONMENT, "description": "Slow"}, "", "detected", ": Slow"),
    ("incident", "reported", "0.3.0", {**_ENVIRONMENT, "ticketURI": "x"}, "detected", "reported", ""),
    ("incident", "resolved", "0.3.0", _ENVIRONMENT, "", "resolved", ""),
    ("ticket", "created", "0.2.0", _TICKET, "", "open", ": Mend"),
    ("ticket", "updated", "0.2.0", {**_TICKET, "updatedBy": "bob"}, "", "", ": Mend"),
    ("ticket", "closed", "0.2.0", {**_TICKET, "resolution": "done"}, "open", "closed", ": Mend"),
]


def examples() -> list[tuple[dict[str, Any], tuple[str, str, str, str]]]:
    """Each event, with the story, the stages and the event that it becomes."""
    return [_example(number, *row) for number, row in enumerate(_ROWS)]


def _example(
    number: int, subject: str, predicate: str, version: str, content: dict[str, Any], old: str, new: str, title: str
) -> tuple[dict[str, Any], tuple[str, str, str, str]]:
    context = {
        "specversion": "0.5.1",
        "id": f"id-{number}",
        "source": "/event/source/123",
        "type": f"dev.cdevents.{subject.lower()}.{predicate}.{version}",
        "timestamp": STAMP,
        "chainId": "4c8cb7dd-3448-41de-8768-eec704e2829b",
        "schemaUri": "https://example.org/schema",
        "links": [{"linkType": "END", "from": {"contextId": "5328c37f-bb7e-4bb7-84ea-9f5f85e4a7ce"}}],
    }
    # The subject's type stands in the type of the event only, since version 0.5.
    event = {"context": context, "subject": {"id": f"{subject}-{number}", "source": "/event", "content": content}}
    return event, (f"{subject}-{number}", old, new, f"{subject.lower()} {predicate}{title}")
