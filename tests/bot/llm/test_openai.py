"""The provider for OpenAI-compatible servers, against a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bot.llm import FailureKind, ModelFailed, build_model
from bot.llm.openai import OpenAIModel
from bot.llm.retry import Patience
from bot.prompt import ModelMessage, model_messages, said
from crdt import PipelineEvent, TranscriptEntry, audit_line
from tests.bot.llm.wire import QUESTION, Slept, serving, unused_url
from tests.servers.model import Cut, Raw, Reply, ScriptedModel, Status


@pytest.fixture
async def server() -> AsyncIterator[ScriptedModel]:
    async with ScriptedModel() as scripted:
        yield scripted


@asynccontextmanager
async def _model(url: str, **changes: Any) -> AsyncIterator[OpenAIModel]:
    patience = changes.pop("patience", Patience(1000.0, sleep=Slept().sleep))
    settings: dict[str, Any] = {"model": "test-model", "api_key": None, "timeout": 5.0, "max_reply_tokens": 300}
    settings |= {"temperature": None, "patience": patience} | changes
    model = OpenAIModel(base_url=url, **settings)
    try:
        yield model
    finally:
        await model.aclose()


async def _failure(url: str, **changes: Any) -> ModelFailed:
    async with _model(url, **changes) as model:
        with pytest.raises(ModelFailed) as failed:
            await model.reply(QUESTION)
    return failed.value


async def test_the_wire_shows_our_messages_byte_for_byte(server: ScriptedModel) -> None:
    lines = [audit_line(PipelineEvent("42", "2_current", "3_qa", "Gates\u2028Started <b>"))]
    transcript = [
        TranscriptEntry("user", "$1", said("@alice:example.org", "what's new?\n\n```x```  "), lines),
        TranscriptEntry("assistant", "$1", "  **Story 42** \U0001f389 <think>\n"),
        TranscriptEntry(
            "user", "$2", said("@alice:example.org", "\u201cand now?\u201d\t\u00e9 \u202f</pipeline_events>")
        ),
    ]
    messages = model_messages("Be kind.", transcript, budget_tokens=4000)
    async with _model(server.url) as model:
        reply = await model.reply(messages)
    assert reply.text == "reply 1"
    assert server.requests[0].messages == [{"role": m.role, "content": m.content} for m in messages]
    assert all(type(m["content"]) is str for m in server.requests[0].messages)


async def test_a_template_token_that_a_person_typed_reaches_no_open_weight_model_whole(server: ScriptedModel) -> None:
    async with _model(server.url) as model:
        await model.reply([QUESTION[0], ModelMessage("user", "<|im_end|>")])
    assert server.requests[0].text == "<\u200d|im_end|>"


async def test_the_reply_is_bounded_in_the_word_that_other_servers_know(server: ScriptedModel) -> None:
    async with _model(server.url) as model:
        await model.reply(QUESTION)
    body = server.requests[0].body
    assert body["max_tokens"] == 300
    assert "max_completion_tokens" not in body
    assert "temperature" not in body
    assert not body.get("stream")


async def test_openai_itself_is_told_max_completion_tokens() -> None:
    async with _model("https://api.openai.com/v1") as model:
        assert dict(model._model.profile)["openai_chat_supports_max_completion_tokens"]


async def test_a_temperature_is_sent_when_it_is_set(server: ScriptedModel) -> None:
    async with _model(server.url, temperature=0.0) as model:
        await model.reply(QUESTION)
    assert server.requests[0].body["temperature"] == 0.0


async def test_the_provider_counts_the_tokens(server: ScriptedModel) -> None:
    async with _model(server.url) as model:
        reply = await model.reply(QUESTION)
    assert (reply.input_tokens, reply.output_tokens) == (4, 2)


async def test_the_key_is_sent(server: ScriptedModel) -> None:
    server.api_key = "sk-secret"
    async with _model(server.url, api_key="sk-secret") as model:
        await model.check()
        assert (await model.reply(QUESTION)).text == "reply 1"


@pytest.mark.parametrize(("finish_reason", "unfinished"), [("stop", False), ("length", True)])
async def test_a_reply_that_was_stopped_by_its_limit_is_known(
    server: ScriptedModel, finish_reason: str, unfinished: bool
) -> None:
    server.script(Reply("First, the story", finish_reason=finish_reason))
    async with _model(server.url) as model:
        assert (await model.reply(QUESTION)).unfinished is unfinished


async def test_a_key_from_the_environment_goes_to_noserving(
    server: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-somebody-elses")
    async with _model(server.url) as model:
        await model.reply(QUESTION)
    assert "somebody" not in str(server.requests[0].headers)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("<think>hm\n\nhm</think>\n\nYes.", "Yes."),
        ("\n<think></think><think>b</think> Yes.", "Yes."),
        ("I should say yes.\n</think>\n\nYes.", "Yes."),
        ("I should say yes.</think>\n\nYes.", "Yes."),
        ("I should say yes.\n</think>\nYes.", "Yes."),
        ("</think>\nYes.", "Yes."),
        ("Use the tag </think>\nto close it. Done.", "Use the tag </think>\nto close it. Done."),
        ("The tag is </think>", "The tag is </think>"),
        ("Close it with `</think>`.", "Close it with `</think>`."),
        ("The tags are `<think>` and `</think>`\n.", "The tags are `<think>` and `</think>`\n."),
    ],
)
async def test_reasoning_is_no_part_of_the_reply(server: ScriptedModel, raw: str, text: str) -> None:
    server.script(Reply(raw))
    async with _model(server.url) as model:
        assert (await model.reply(QUESTION)).text == text


async def test_reasoning_in_a_field_of_its_own_is_no_part_of_the_reply() -> None:
    def answer(_: web.Request) -> web.Response:
        message = {"role": "assistant", "content": "Yes.", "reasoning_content": "hm"}
        completion = {"id": "1", "object": "chat.completion", "model": "m"}
        return web.json_response(completion | {"choices": [{"index": 0, "message": message}]})

    async with serving(answer) as url, _model(url) as model:
        reply = await model.reply(QUESTION)
    assert (reply.text, reply.input_tokens, reply.output_tokens) == ("Yes.", None, None)


async def test_control_characters_and_half_surrogates_are_taken_out(server: ScriptedModel) -> None:
    server.script(Reply("a\x00b\ud83d c"))
    async with _model(server.url) as model:
        assert (await model.reply(QUESTION)).text == "ab c"


@pytest.mark.parametrize(
    ("status", "kind", "transient"),
    [
        (Status(400, "no such option"), "bad_request", False),
        (Status(400, "too long", "context_length_exceeded"), "context_overflow", False),
        (Status(400, "the request exceeds the available context size"), "context_overflow", False),
        (Status(400, "This model's maximum prompt length is 131072 but"), "context_overflow", False),
        (Status(500, "context length exceeded"), "context_overflow", False),
        (Status(401, "Incorrect API key"), "unauthorised", False),
        (Status(403, "not yours"), "unauthorised", False),
        (Status(404, "no such model", "model_not_found"), "unknown_model", False),
        (Status(404, "page not found"), "unknown_model", False),
        (Status(408, "took too long"), "timeout", True),
        (Status(418, "teapot"), "bad_request", False),
        (Status(422, "bad"), "bad_request", False),
        (Status(429, "slow down"), "rate_limited", True),
        (Status(429, "pay", "insufficient_quota"), "rate_limited", False),
        (Status(500, "oops"), "server_error", True),
        (Status(502, "bad gateway"), "server_error", True),
        (Status(503, "loading model"), "server_error", True),
    ],
)
async def test_every_refusal_has_its_kind(
    server: ScriptedModel, status: Status, kind: FailureKind, transient: bool
) -> None:
    server.script(*[status] * 3)
    failure = await _failure(server.url)
    assert (failure.kind, failure.transient) == (kind, transient)
    assert re.search(rf"'test-model' at {server.url} answered {status.status} \([a-z_]+\); ", failure.detail)
    assert failure.words == status.message
    assert len(server.requests) == (3 if transient else 1)


async def test_an_overflow_is_known_in_a_list_of_errors_as_well() -> None:
    words = "The input token count (8193) exceeds the maximum number of tokens allowed (8192)."
    error = {"error": {"code": 400, "message": words, "status": "INVALID_ARGUMENT"}}
    async with serving(lambda _: web.json_response([error], status=400)) as url:
        failure = await _failure(url)
    assert (failure.kind, failure.words) == ("context_overflow", words)


async def test_a_passing_refusal_is_tried_again_after_the_time_that_was_asked_for(server: ScriptedModel) -> None:
    server.script(Status(429, retry_after=3), Status(500), Reply("there"))
    slept = Slept()
    async with _model(server.url, patience=Patience(1000.0, sleep=slept.sleep, chance=lambda: 1.0)) as model:
        assert (await model.reply(QUESTION)).text == "there"
    assert slept == [4.0, 2.0]
    assert len({json.dumps(request.body) for request in server.requests}) == 1


async def test_a_long_retry_after_is_handed_on(server: ScriptedModel) -> None:
    server.script(Status(429, retry_after=600))
    failure = await _failure(server.url)
    assert (failure.retry_after, failure.transient, len(server.requests)) == (600.0, True, 1)


async def test_a_server_that_is_down_is_unreachable() -> None:
    failure = await _failure(unused_url())
    assert (failure.kind, failure.transient) == ("unreachable", True)
    assert "can't be reached; check that the server runs" in failure.detail


async def test_a_cut_connection_is_tried_again(server: ScriptedModel) -> None:
    server.script(Cut(), Reply("there"))
    async with _model(server.url) as model:
        assert (await model.reply(QUESTION)).text == "there"


async def test_a_server_that_does_not_answer_in_time_is_given_up(server: ScriptedModel) -> None:
    gates = [server.hang() for _ in range(3)]
    failure = await _failure(server.url, timeout=1.0)
    assert (failure.kind, failure.transient, len(server.requests)) == ("timeout", True, len(gates))
    assert "gave no reply in time; raise llm.timeout" in failure.detail


async def test_a_cancelled_reply_is_cancelled_at_the_server_too(server: ScriptedModel) -> None:
    server.hang()
    async with _model(server.url) as model:
        task = asyncio.create_task(model.reply(QUESTION))
        await server.wait_for_requests(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (Reply(""), "empty_reply", "gave an empty reply"),
        (Reply("<think>hm</think>"), "empty_reply", "gave an empty reply"),
        (Reply("<think>and then", finish_reason="length"), "empty_reply", "raise llm.max_reply_tokens"),
        (Reply("", finish_reason="content_filter"), "refused", "declined to answer"),
    ],
)
async def test_a_reply_without_text_is_a_failure(
    server: ScriptedModel, reply: Reply, kind: FailureKind, words: str
) -> None:
    server.script(reply)
    failure = await _failure(server.url)
    assert (failure.kind, failure.transient) == (kind, False)
    assert words in failure.detail


@pytest.mark.parametrize(
    "response",
    [
        {"text": "<html>welcome</html>", "content_type": "text/html"},
        {"text": "hello", "content_type": "text/plain"},
        {"text": "{", "content_type": "application/json"},
        {"text": "[]", "content_type": "application/json"},
        {"text": "{}", "content_type": "application/json"},
        {"text": '{"choices": []}', "content_type": "application/json"},
        {"text": '{"choices": null}', "content_type": "application/json"},
        {"text": '{"choices": "none"}', "content_type": "application/json"},
        {"text": '{"choices": [null]}', "content_type": "application/json"},
        {"text": '{"choices": [{"message": null}]}', "content_type": "application/json"},
        {"text": '{"choices": [{"message": {"content": 7}}]}', "content_type": "application/json"},
        {"text": '{"error": {"message": "I am an error"}}', "content_type": "application/json"},
    ],
)
async def test_an_answer_that_is_no_completion_points_to_the_base_url(response: dict[str, str]) -> None:
    async with serving(lambda _: web.Response(**response)) as url:  # type: ignore[arg-type]
        failure = await _failure(url)
    assert failure.kind == "server_error"
    assert "no chat completion; check llm.base_url" in failure.detail


def _answer_with_error(code: int, words: str, *, in_choice: bool) -> Raw:
    """Status 200, as of a gateway that had sent it before the model behind it failed."""
    error = {"error": {"code": code, "message": words}}
    choice = {"index": 0, "finish_reason": "error", "message": {"role": "assistant", "content": ""}} | error
    completion = {"id": "1", "object": "chat.completion", "model": "m", "choices": [choice]}
    return Raw(json.dumps(completion if in_choice else error).encode())


@pytest.mark.parametrize("in_choice", [False, True])
@pytest.mark.parametrize(
    ("code", "words", "kind", "transient"),
    [
        (429, "slow down", "rate_limited", True),
        (502, "the provider failed", "server_error", True),
        (402, "no credits", "rate_limited", False),
        (400, "maximum context length is 8192", "context_overflow", False),
    ],
)
async def test_an_error_inside_an_answer_is_taken_as_if_it_were_its_status(
    server: ScriptedModel, code: int, words: str, kind: FailureKind, transient: bool, in_choice: bool
) -> None:
    server.script(*[_answer_with_error(code, words, in_choice=in_choice)] * 3)
    failure = await _failure(server.url)
    assert (failure.kind, failure.transient, failure.words) == (kind, transient, words)
    assert f"answered {code}; " in failure.detail
    assert len(server.requests) == (3 if transient else 1)


@pytest.mark.parametrize("status", [400, 401, 422, 429, 500])
async def test_errors_show_neither_keys_nor_what_people_wrote(status: int) -> None:
    def refuse(_: web.Request) -> web.Response:
        error = {"message": "sk-secret can't say 'what Alice wrote'", "code": "what Alice wrote", "type": "bad_input"}
        return web.json_response({"error": error, "detail": [{"input": "what Alice wrote"}]}, status=status)

    async with serving(refuse) as url:
        with capture_logs() as logs:
            failure = await _failure(url.replace("http://", "http://user:hush@"), api_key="sk-secret")
    assert f"answered {status} (bad_input); " in failure.detail
    assert failure.words == "(hidden) can't say 'what Alice wrote'"
    told = failure.detail + str([line for line in logs if line["log_level"] != "debug"])
    assert not any(secret in told for secret in ("sk-secret", "hush", "Alice"))


async def test_a_known_model_passes_the_check(server: ScriptedModel) -> None:
    server.models = ("other", "test-model:latest")
    async with _model(server.url) as model:
        await model.check()


async def test_a_model_that_is_served_but_not_listed_passes_the_check() -> None:
    def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/models"):
            return web.json_response({"data": None})
        assert request.raw_path == "/v1/models/org%2Fhidden"
        return web.json_response({"id": "org/hidden"})

    async with serving(answer) as url, _model(url, model="org/hidden") as model:
        await model.check()


async def test_an_unknown_model_fails_the_check_and_is_told_what_there_is(server: ScriptedModel) -> None:
    server.models = tuple(f"model-{n}" for n in range(12))
    async with _model(server.url) as model:
        with pytest.raises(ModelFailed) as failed:
            await model.check()
    assert failed.value.kind == "unknown_model"
    for words in ("'test-model'", "model-0, model-1", "model-9 and 2 more", "llm.check_model = false"):
        assert words in failed.value.detail


@pytest.mark.parametrize("status", [401, 403])
async def test_a_wrong_key_fails_the_check(status: int) -> None:
    async with serving(lambda _: web.Response(status=status)) as url, _model(url) as model:
        with pytest.raises(ModelFailed) as failed:
            await model.check()
    assert failed.value.kind == "unauthorised"
    assert "check llm.api_key" in failed.value.detail


@pytest.mark.parametrize(
    "response",
    [
        {"status": 404},
        {"status": 405},
        {"status": 500},
        {"text": "<html>", "content_type": "text/html"},
        {"text": "{", "content_type": "application/json"},
        {"text": '{"data": {}, "object": 1}', "content_type": "application/json"},
        {"text": '{"data": "x"}', "content_type": "application/json"},
    ],
)
async def test_a_server_without_a_list_of_models_is_only_logged(response: dict[str, Any]) -> None:
    async with serving(lambda _: web.Response(**response)) as url, _model(url) as model:
        with capture_logs() as logs:
            await model.check()
    assert [entry["event"] for entry in logs] == ["model_check_impossible"]


async def test_a_server_that_is_not_up_yet_is_only_logged() -> None:
    async with _model(unused_url()) as model:
        with capture_logs() as logs:
            await model.check()
    assert [entry["event"] for entry in logs] == ["model_unreachable"]


async def test_the_factory_makes_the_provider_that_is_named(server: ScriptedModel) -> None:
    model = build_model("openai", base_url=server.url, model="test-model")
    await model.check()
    assert (await model.reply(QUESTION)).text == "reply 1"
    await model.aclose()
