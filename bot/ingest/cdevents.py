"""CDEvents, as version 0.5 of their specification has them: what each type is as a story and its stages. Pure.

A type is `dev.cdevents.<subject>.<predicate>.<version>`, or `dev.cdeventsx.…` for a tool's own. The story is the
subject's id. A type that is not known here is told by its predicate, so that a newer vocabulary is not lost.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from bot.ingest.clean import clean_event
from bot.ingest.mapping import story
from bot.ingest.native import is_timestamp
from bot.ingest.payload import Incomplete, Payload
from bot.ingest.refusals import Malformed, Unprocessable
from bot.ingest.strict_json import parse_json
from crdt import InvalidEvent, PipelineEvent, validate_event

_TYPE: Final = re.compile(
    r"dev\.cdevents(?:x\.[a-z0-9]+)?[.-](?P<subject>[A-Za-z0-9]+)\.(?P<predicate>[A-Za-z]+)\.[0-9]\S*"
)
# Stages that are known by the predicate, whatever runs.
_RUN: Final = MappingProxyType({"queued": ("", "queued"), "started": ("queued", "started")})
# Stages that are known by subject and predicate; what is not here moves from nowhere to its predicate.
_MOVES: Final[Mapping[str, Mapping[str, tuple[str, str]]]] = MappingProxyType(
    {
        "testcaserun": {"skipped": ("queued", "skipped")},
        "change": {
            "created": ("", "open"),
            "updated": ("open", "open"),
            "reviewed": ("open", "reviewed"),
            "merged": ("open", "merged"),
            "abandoned": ("open", "abandoned"),
        },
        "ticket": {"created": ("", "open"), "updated": ("", ""), "closed": ("open", "closed")},
        "artifact": {"signed": ("packaged", "signed")},
        "incident": {"reported": ("detected", "reported")},
    }
)
# A ticket has no field for its stage; custom data is where the specification lets a sender put one.
_CUSTOM_FROM: Final = ("from_stage", "fromStage", "from", "previous_stage", "previousStage")
_CUSTOM_TO: Final = ("to_stage", "toStage", "to", "stage", "status", "state")
# What the subject is called, as far as its id does not tell.
_TITLES: Final = (
    "pipelineName",
    "taskName",
    "testSuite.name",
    "testCase.name",
    "summary",
    "description",
    "name",
    "artifactId",
    "testSuite.id",
    "testCase.id",
    "outputType",
    "repository.id",
)


def is_cdevent(content: object) -> bool:
    """Tell whether a value has the two parts that every CDEvent has."""
    return isinstance(content, dict) and isinstance(content.get("context"), dict) and "subject" in content


def read_cdevent(content: object, place: str) -> PipelineEvent:
    """Map a CDEvent; `place` is where it stands in the request, like `[3].data`.

    Raises:
        Unprocessable: it lacks its type or its subject's id, or they are no text that the log takes.
    """
    try:
        return _map(Payload(content))
    except Incomplete as error:
        raise _wrong(place, error.path, "is missing") from None
    except InvalidEvent as error:
        raise _wrong(place, "subject.id" if error.field == "story_id" else error.field, error.problem) from None


def _wrong(place: str, path: str, problem: str) -> Unprocessable:
    field = f"{place}.{path}" if place else path
    return Unprocessable(f"{field} {problem}; nothing was stored", field=field)


def _map(event: Payload) -> PipelineEvent:
    found = _TYPE.fullmatch(event.need("context.type"))
    if found is None:
        raise InvalidEvent("context.type", "must be like dev.cdevents.<subject>.<predicate>.<version>")
    subject, predicate = found["subject"].lower(), found["predicate"].lower()
    from_stage, to_stage = _stages(subject, predicate, event)
    content = Payload(event.at("subject.content"))
    told = story(event.need("subject.id"), from_stage, to_stage, f"{subject} {predicate}", content.first(*_TITLES))
    stamp = event.text("context.timestamp")
    occurred_at = stamp if is_timestamp(stamp) else None
    cleaned = clean_event(PipelineEvent(*_fields(told), occurred_at))
    validate_event(cleaned)
    return cleaned


def _fields(event: PipelineEvent) -> tuple[str, str, str, str]:
    return event.story_id, event.from_stage, event.to_stage, event.pipeline_event


def _stages(subject: str, predicate: str, event: Payload) -> tuple[str, str]:
    from_stage, to_stage = _MOVES.get(subject, {}).get(predicate) or _RUN.get(predicate, ("", predicate))
    if predicate == "finished":
        return "started", event.text("subject.content.outcome", "finished")
    if subject == "service" and predicate not in {"published", "removed"}:
        return "", event.text("subject.content.environment.id", predicate)
    if subject == "service" and predicate == "removed":
        return event.text("subject.content.environment.id"), "removed"
    if subject == "ticket":
        custom = _custom_data(event.at("customData"))
        return custom.first(*_CUSTOM_FROM) or from_stage, custom.first(*_CUSTOM_TO) or to_stage
    return from_stage, to_stage


def _custom_data(value: object) -> Payload:
    """Give what a sender added: an object, or as a string its JSON or the base64 of it; anything else says nothing."""
    if not isinstance(value, str):
        return Payload(value)
    for read in (str.encode, partial(base64.b64decode, validate=True)):
        try:
            content = parse_json(read(value))
        except (ValueError, Malformed):
            continue  # it may be the other form, or data of another type
        if isinstance(content, dict):
            return Payload(content)
    return Payload(None)
