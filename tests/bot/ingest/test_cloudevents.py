"""CloudEvents in their three modes, through the listener."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from bot.ingest import IngestServer
from tests.bot.ingest.cdevents_examples import examples
from tests.bot.ingest.conftest import RecordingAppend
from tests.bot.ingest.raw_http import Answer, post

NATIVE = {"story_id": "42", "from_stage": "a", "to_stage": "b", "pipeline_event": "Moved"}
ENVELOPE = {"specversion": "1.0", "id": "1", "source": "/ci", "type": "org.example.moved", "data": NATIVE}
STRUCTURED, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"


def event(event_id: str = "1", /, **more: Any) -> dict[str, Any]:
    return {name: value for name, value in (ENVELOPE | {"id": event_id} | more).items() if value is not None}


async def send(port: int, mode: str, content: dict[str, Any]) -> Answer:
    if mode == "structured":
        return await post(port, content, Content_Type=STRUCTURED)
    if mode == "batch":
        return await post(port, [content], Content_Type=f"{BATCH}; charset=utf-8")
    headers = {f"ce-{name}": str(value) for name, value in content.items() if name != "data"}
    return await post(port, content.get("data"), **headers)


@pytest.mark.parametrize("mode", ["binary", "structured", "batch"])
async def test_each_mode_takes_a_native_event_once(server: IngestServer, append: RecordingAppend, mode: str) -> None:
    taken = await send(server.port, mode, event(time="2026-01-31T09:30:00Z"))
    assert (taken.status, taken.json["accepted"]) == (202, 1)
    assert append.calls[0][0].events[0].occurred_at == "2026-01-31T09:30:00Z"
    for again in ("binary", "structured", "batch"):
        assert (await send(server.port, again, event())).json["duplicates"] == 1
    assert (await send(server.port, mode, event(source="/other"))).json["accepted"] == 1
    assert (await send(server.port, mode, event("2"))).json["accepted"] == 1


@pytest.mark.parametrize("mode", ["binary", "structured", "batch"])
async def test_each_mode_takes_every_type_of_cdevents(server: IngestServer, append: RecordingAppend, mode: str) -> None:
    told = []
    for content, expected in examples():
        context = content["context"]
        sent = event(context["id"], source=context["source"], type=context["type"], data=content)
        assert (await send(server.port, mode, sent)).json["accepted"] == 1
        told.append(expected)
    events = [call[0].events[0] for call in append.calls]
    assert [(e.story_id, e.from_stage, e.to_stage, e.pipeline_event) for e in events] == told


@pytest.mark.parametrize("mode", ["binary", "structured"])
@pytest.mark.parametrize("name", ["id", "source", "type", "specversion"])
@pytest.mark.parametrize("value", [None, "", "0.3\n", "x" * 2001])
async def test_a_required_attribute_that_is_missing_or_wrong_is_malformed(
    server: IngestServer, append: RecordingAppend, mode: str, name: str, value: str | None
) -> None:
    if mode == "binary" and value == "0.3\n":
        value = "0.3%0A"
    answer = await send(server.port, mode, event(**{name: value}))
    field = f"ce-{name}" if mode == "binary" else name
    assert (answer.status, answer.error["code"], answer.error["field"]) == (400, "malformed", field)
    assert append.calls == []


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (event(id=None), "[1].id"),
        (event(specversion="0.3"), "[1].specversion"),
        (event(time="yesterday"), "[1].time"),
        (event(data=None), "[1].data"),
        (event(data="text"), "[1].data"),
        (event(data=NATIVE | {"story_id": 5}), "[1].data.story_id"),
        (event(data=NATIVE | {"pipeline_event": "__gap__"}), "[1].data.pipeline_event"),
        (event(type="dev.cdevents.change.merged.0.3.0", data={}), "[1].data.context.type"),
        (event(data_base64="%"), "[1].data_base64"),
        (event(data=None, data_base64="%"), "[1].data_base64"),
        (event(data=None, data_base64="AAAA"), "[1].data_base64"),
        (["no object"], "[1]"),
    ],
)
async def test_one_bad_event_keeps_a_batch_out_and_is_named(
    server: IngestServer, append: RecordingAppend, bad: object, field: str
) -> None:
    answer = await post(server.port, [event("9"), bad], Content_Type=BATCH)
    assert (answer.status, answer.error["field"]) == (422, field)
    assert append.calls == []


async def test_a_batch_is_an_array_of_at_most_a_thousand(server: IngestServer) -> None:
    assert (await post(server.port, event(), Content_Type=BATCH)).status == 400
    assert (await post(server.port, [event()] * 1_001, Content_Type=BATCH)).status == 413
    assert (await post(server.port, [], Content_Type=BATCH)).json["accepted"] == 0


async def test_data_may_be_base64_of_json(server: IngestServer, append: RecordingAppend) -> None:
    encoded = base64.b64encode(json.dumps(NATIVE).encode()).decode()
    assert (await post(server.port, event(data=None, data_base64=encoded), Content_Type=STRUCTURED)).status == 202
    assert append.calls[0][0].events[0].story_id == "42"


async def test_an_id_of_the_data_is_a_second_name_of_the_event(server: IngestServer) -> None:
    assert (await post(server.port, NATIVE | {"id": "a"})).json["accepted"] == 1
    again = await post(server.port, event(data=NATIVE | {"id": "a"}), Content_Type=STRUCTURED)
    assert again.json["duplicates"] == 1


async def test_headers_in_binary_mode_are_percent_encoded_and_may_be_quoted(server: IngestServer) -> None:
    assert (await send(server.port, "binary", event("caf%C3%A9"))).json["accepted"] == 1
    assert (await send(server.port, "structured", event("café"))).json["duplicates"] == 1
    assert (await send(server.port, "binary", event('"caf%C3%A9"'))).json["duplicates"] == 1
    assert (await send(server.port, "binary", event('"say \\"%22hi\\""'))).json["accepted"] == 1
    assert (await send(server.port, "structured", event('say ""hi"'))).json["duplicates"] == 1
    answer = await send(server.port, "binary", event("%ff"))
    assert (answer.status, answer.error["field"]) == (400, "ce-id")


@pytest.mark.parametrize("name", ["構築\u300017", "a\u00a0b", "👩\u200d🚀"])
async def test_a_name_may_hold_what_is_no_control_character(server: IngestServer, name: str) -> None:
    assert (await send(server.port, "structured", event(name))).json["accepted"] == 1
    refused = await send(server.port, "structured", event(name + "\x85"))
    assert (refused.status, refused.error["field"]) == (400, "id")
