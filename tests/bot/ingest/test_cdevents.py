from __future__ import annotations

import base64
from typing import Any

import pytest

from bot.ingest.cdevents import is_cdevent, read_cdevent
from bot.ingest.refusals import Unprocessable
from tests.bot.ingest.cdevents_examples import STAMP, examples


@pytest.mark.parametrize(("event", "told"), examples())
def test_every_type_has_a_story_and_stages(event: dict[str, Any], told: tuple[str, str, str, str]) -> None:
    assert is_cdevent(event)
    read = read_cdevent(event, "")
    assert (read.story_id, read.from_stage, read.to_stage, read.pipeline_event) == told
    assert read.occurred_at == STAMP


def cdevent(kind: str, **more: Any) -> dict[str, Any]:
    return {"context": {"type": kind}, "subject": {"id": "ticket-1", "content": {"summary": "Mend"}}} | more


@pytest.mark.parametrize(
    ("custom", "moved"),
    [
        ({"from_stage": "doing", "to_stage": "qa"}, ("doing", "qa")),
        ({"previous_stage": "doing", "stage": "qa"}, ("doing", "qa")),
        ({"stage": "qa"}, ("", "qa")),
        ({"status": "qa"}, ("", "qa")),
        ({"fromStage": "doing", "toStage": "qa"}, ("doing", "qa")),
        ({"from": "doing", "to": "qa"}, ("doing", "qa")),
        ({"state": 7}, ("", "7")),
        ('{"stage": "qa"}', ("", "qa")),
        (base64.b64encode(b'{"stage": "qa"}').decode(), ("", "qa")),
        (base64.b64encode(b"<stage>qa</stage>").decode(), ("", "")),
        (base64.b64encode(b"\xff" * 9).decode(), ("", "")),
        (base64.b64encode(b"[" * 100_000).decode(), ("", "")),
        ("1234", ("", "")),
        ("no base64", ("", "")),
        ("\ud800", ("", "")),
        (["stage"], ("", "")),
        ({"stage": {"name": "qa"}}, ("", "")),
        ({}, ("", "")),
    ],
)
def test_a_ticket_has_its_stage_in_custom_data(custom: object, moved: tuple[str, str]) -> None:
    read = read_cdevent(cdevent("dev.cdevents.ticket.updated.0.2.0", customData=custom), "")
    assert (read.from_stage, read.to_stage) == moved


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("dev.cdevents.deployment.queued.0.1.0", "deployment queued"),
        ("dev.cdevents.pipelinerun.finished.0.3.0-draft", "pipelinerun finished"),
        ("dev.cdeventsx.mytool-resource.polished.0.1.0", "resource polished"),
    ],
)
def test_types_that_are_not_known_here_are_told_by_their_predicate(kind: str, told: str) -> None:
    read = read_cdevent(cdevent(kind), "")
    assert read.to_stage == told.split()[1]
    assert read.pipeline_event == f"{told}: Mend"


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ({"context": {}, "subject": {"id": "1"}}, "[2].data.context.type"),
        ({"context": {"type": "dev.cdevents.change.merged.0.3.0"}, "subject": {}}, "[2].data.subject.id"),
        ({"context": {"type": "org.example.thing"}, "subject": {"id": "1"}}, "[2].data.context.type"),
        (cdevent("dev.cdevents.change.merged.1") | {"subject": {"id": "\n\u202e"}}, "[2].data.subject.id"),
        ([], "[2].data.context.type"),
    ],
)
def test_what_lacks_its_type_or_its_subject_is_refused_by_field(event: object, field: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        read_cdevent(event, "[2].data")
    assert caught.value.field == field
