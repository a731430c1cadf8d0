"""Whatever the model's server does: what passes is waited out, what lasts costs one short notice, nothing is lost."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from tests.servers.model import Behaviour, Cut, ModelRequest, Raw, Reply, ScriptedModel, Status, text_of
from tests.servers.synapse import Person
from tests.system.conftest import MusherMaker, enter
from tests.system.outside import all_told, event, judge, line_of
from tests.system.service import MusherProcess

HANG: Final = Reply(gate=asyncio.Event())
OVERFLOW: Final = Status(400, "This model's maximum context length is 8192 tokens.", "context_length_exceeded")
_COMPLETION: Final = b'{"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [{"index": 0, '
NOT_UTF_8: Final = Raw(
    _COMPLETION + b'"finish_reason": "stop", "message": {"role": "assistant", "content": "\xff\xfe"}}]}'
)
HALF_A_BODY: Final = Raw(_COMPLETION, cut_at=20)
HTML: Final = Raw(b"<html>Bad gateway</html>")


@dataclass(frozen=True, slots=True)
class Lasting:
    """A failure that lasts: what the notice says of it, and how often the model may be asked for it."""

    behaviour: Behaviour
    notice: str
    requests: tuple[int, ...] = (1,)


LASTING: Final[dict[str, Lasting]] = {
    "401": Lasting(Status(401, "Incorrect API key provided."), r"refused my key.*`llm\.api_key`"),
    "404": Lasting(Status(404, "No such model.", "model_not_found"), r"does not exist.*`llm\.model`"),
    "429 for an hour": Lasting(Status(429, retry_after=3600), "too many requests"),
    "500": Lasting(Status(500), "internal error", (3,)),
    "a hang": Lasting(HANG, "too long to answer", (2, 3)),
    "a cut": Lasting(Cut(), "could not reach", (3,)),
    "half a body": Lasting(HALF_A_BODY, "could not reach|internal error", (1, 3)),
    "HTML": Lasting(HTML, "internal error"),
    "no UTF-8": Lasting(NOT_UTF_8, "internal error"),
    "an empty reply": Lasting(Reply(""), "empty answer"),
    "an overflow": Lasting(OVERFLOW, r"too long for the language model.*`llm\.context_tokens`", (2,)),
}
PASSING: Final[dict[str, Behaviour]] = {
    "429": Status(429, retry_after=1),
    "503": Status(503),
    "a cut that passes": Cut(),
    "an overflow that half fits": OVERFLOW,
}
CONTROLLING: Final = "control characters"
CONTROL_CHARACTERS: Final = "a\x00b\x1b[31mc\x07\n\nd\x9be"
SECRET: Final = "sk-a-secret-of-the-tests"
LONGEST_NOTICE: Final = 250


class Moody:
    """A model that treats each room as the room's first words ask for: `fault <name>` in the newest question."""

    def __init__(self) -> None:
        self.passed: set[str] = set()

    def __call__(self, request: ModelRequest) -> Behaviour:
        found = re.search(r"fault \[(.*)\]", request.text)
        name = found.group(1) if found else ""
        if name in LASTING:
            return LASTING[name].behaviour
        if name in PASSING and name not in self.passed:
            self.passed.add(name)
            return PASSING[name]
        return Reply(CONTROL_CHARACTERS if name == CONTROLLING else None)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a room saw of a fault: the reply's content, and the requests that it took."""

    content: dict[str, Any]
    requests: int


AT_ONCE: Final = 6
"""Rooms that meet their faults beside each other. More of them only wait for a homeserver on a slow machine."""


async def meet(musher: MusherProcess, model: ScriptedModel, alice: Person, name: str) -> Asked:
    """Meet a fault in a room of its own, ask once more, and make sure that nothing is lost or twice."""
    room = await enter(alice, musher)
    asked = await alice.say(room, f"fault [{name}]")
    (reply,) = await alice.wait_for_replies_to(room, asked, musher.user_id, timeout=30)
    content: dict[str, Any] = reply["content"]
    question = f"<{alice.user_id}>: fault [{name}]"
    requests = [each for each in model.requests if all_told(each.messages)[-1].said == (question,)]
    verdict = await judge(alice, room, musher.user_id, model)
    assert (verdict.turns, verdict.lines) == (2, [line_of(event("before"))])
    final = next(each for each in reversed(model.requests) if room in each.text)
    assert [text_of(each) for each in final.messages if each["role"] == "assistant"] == [content["body"]]
    return Asked(content, len(requests))


async def test_a_failure_that_lasts_costs_one_notice_and_one_that_passes_costs_none(
    make_musher: MusherMaker, model: ScriptedModel, alice: Person
) -> None:
    model.behaviour = Moody()
    musher = await make_musher({"llm": {"timeout": "2s", "api_key": SECRET}, "matrix": {"max_parallel_rooms": 20}})
    await musher.start()
    await musher.post_events(event("before"))
    names = [*LASTING, *PASSING, CONTROLLING]
    slots = asyncio.Semaphore(AT_ONCE)

    async def in_turn(name: str) -> Asked:
        async with slots:
            return await meet(musher, model, alice, name)

    seen = dict(zip(names, await asyncio.gather(*map(in_turn, names)), strict=True))
    for name, fault in LASTING.items():
        body, msgtype = seen[name].content["body"], seen[name].content["msgtype"]
        assert re.search(fault.notice, body), (name, body)
        assert msgtype == "m.notice", name
        assert len(body) < LONGEST_NOTICE, (name, body)
        assert "Traceback" not in body
        assert seen[name].requests in fault.requests, (name, seen[name].requests)
    for name in PASSING:
        assert (seen[name].content["msgtype"], seen[name].requests) == ("m.text", 2), name
    sent = json.dumps(seen[CONTROLLING].content, ensure_ascii=False)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]|\\u00[01]", sent)
    assert SECRET not in musher.log_file.read_text()


async def test_a_message_that_kills_the_service_is_given_up_after_three_deaths(
    musher: MusherProcess, model: ScriptedModel, alice: Person, room: str
) -> None:
    await musher.post_events(event("before"))
    await musher.stop()
    asked = await alice.say(room, "what kills you?")
    for _ in range(3):
        model.hang()
        requests = len(model.requests)
        await musher.start(ready=False)
        await model.wait_for_requests(requests + 1)
        await musher.kill()
    await musher.start()
    (notice,) = await alice.wait_for_replies_to(room, asked, musher.user_id)
    assert "interrupted three times" in notice["content"]["body"]
    assert notice["content"]["msgtype"] == "m.notice"
    assert len(model.requests) == 3
    for earlier, later in pairwise(model.requests):
        assert later.messages == earlier.messages
    verdict = await judge(alice, room, musher.user_id, model)
    assert verdict.lines == [line_of(event("before"))]
