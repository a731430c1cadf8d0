"""The provider for Anthropic's Messages API, against a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
import builtins
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bot.llm import FailureKind, ModelFailed, ProviderNotInstalled, build_model
from bot.llm.anthropic import BASE_URL, AnthropicModel
from bot.llm.retry import Patience
from bot.prompt import ModelMessage, model_messages, said
from crdt import PipelineEvent, TranscriptEntry, audit_line
from tests.bot.llm.wire import QUESTION, Slept, serving, unused_url
from tests.servers.anthropic import OVERLOADED, TOO_LONG, ScriptedAnthropic, system_of
from tests.servers.model import Cut, Reply, Status, text_of

CACHED = {"type": "ephemeral", "ttl": "5m"}


@pytest.fixture
async def server() -> AsyncIterator[ScriptedAnthropic]:
    async with ScriptedAnthropic() as scripted:
        yield scripted


@asynccontextmanager
async def _model(url: str, **changes: Any) -> AsyncIterator[AnthropicModel]:
    patience = changes.pop("patience", Patience(1000.0, sleep=Slept().sleep))
    settings: dict[str, Any] = {"model": "claude-test", "api_key": "sk-key", "timeout": 5.0, "max_reply_tokens": 300}
    settings |= {"patience": patience} | changes
    model = AnthropicModel(base_url=url, **settings)
    try:
        yield model
    finally:
        await model.aclose()


async def _failure(url: str, **changes: Any) -> ModelFailed:
    async with _model(url, **changes) as model:
        with pytest.raises(ModelFailed) as failed:
            await model.reply(QUESTION)
    return failed.value


async def test_the_wire_shows_our_messages_byte_for_byte(server: ScriptedAnthropic) -> None:
    lines = [audit_line(PipelineEvent("42", "2_current", "3_qa", "Gates\u2028Started <b>"))]
    transcript = [
        TranscriptEntry("user", "$1", said("@alice:example.org", "what's new?\n\n```x```  <|im_end|>"), lines),
        TranscriptEntry("assistant", "$1", "  **Story 42** \U0001f389 <think>\n"),
        TranscriptEntry(
            "user", "$2", said("@alice:example.org", "\u201cand now?\u201d\t\u00e9 \u202f</pipeline_events>")
        ),
        TranscriptEntry("assistant", "$2", "Still there."),
        TranscriptEntry("user", "$3", said("@bob:example.org", "thanks  ")),
    ]
    system, *messages = model_messages("Be kind.", transcript, budget_tokens=4000)
    async with _model(server.url) as model:
        reply = await model.reply([system, *messages])
    request = server.requests[0]
    assert reply.text == "reply 1"
    assert system_of(request) == system.content
    assert [(m["role"], text_of(m)) for m in request.messages] == [(m.role, m.content) for m in messages]
    assert [m["role"] for m in request.messages] == ["user", "assistant", "user", "assistant", "user"]


async def test_the_cache_is_marked_after_the_system_prompt_and_the_newest_message(server: ScriptedAnthropic) -> None:
    later = [*QUESTION, ModelMessage("assistant", "Hello."), ModelMessage("user", "<@alice:example.org>: bye")]
    async with _model(server.url) as model:
        await model.reply(QUESTION)
        await model.reply(later)
    first, second = (request.body for request in server.requests)
    assert first["system"] == second["system"] == [{"type": "text", "text": "Be kind.", "cache_control": CACHED}]
    hi = {"type": "text", "text": "<@alice:example.org>: hi"}
    assert first["messages"] == [{"role": "user", "content": [hi | {"cache_control": CACHED}]}]
    assert second["messages"][0] == {"role": "user", "content": [hi]}
    assert second["messages"][-1]["content"][-1]["cache_control"] == CACHED


async def test_the_request_is_bounded_and_holds_nothing_that_was_not_asked_for(server: ScriptedAnthropic) -> None:
    async with _model(server.url) as model:
        await model.reply(QUESTION)
    request = server.requests[0]
    assert request.body["max_tokens"] == 300
    assert request.body.keys() == {"model", "system", "messages", "max_tokens", "stream"}
    assert not request.body["stream"]


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_the_address_may_end_with_v1_as_for_other_providers(server: ScriptedAnthropic, suffix: str) -> None:
    async with _model(server.url + suffix) as model:
        await model.check()
        assert (await model.reply(QUESTION)).text == "reply 1"


async def test_without_an_address_anthropic_itself_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    async with _model("") as model:
        assert str(model._sdk.client.base_url).rstrip("/") == BASE_URL


@pytest.mark.parametrize("key", ["sk-key", None])
async def test_a_secret_from_the_environment_goes_to_no_server(
    server: ScriptedAnthropic, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-somebody-elses")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "somebody-elses")
    async with _model(server.url, api_key=key) as model:
        await model.reply(QUESTION)
    assert "somebody" not in str(server.requests[0].headers)


async def test_the_key_is_sent(server: ScriptedAnthropic) -> None:
    server.api_key = "sk-key"
    async with _model(server.url) as model:
        await model.check()
        assert (await model.reply(QUESTION)).text == "reply 1"


async def test_models_that_would_think_are_told_not_to(server: ScriptedAnthropic) -> None:
    server.models = ("claude-haiku-5-5", "claude-haiku-4-5")
    for name in server.models:
        async with _model(server.url, model=name) as model:
            await model.reply(QUESTION)
    assert [request.body.get("thinking") for request in server.requests] == [{"type": "disabled"}, None]


async def test_the_provider_counts_the_tokens(server: ScriptedAnthropic) -> None:
    async with _model(server.url) as model:
        reply = await model.reply(QUESTION)
    assert (reply.input_tokens, reply.output_tokens) == (4, 2)


async def test_thoughts_are_no_part_of_the_reply() -> None:
    def answer(_: web.Request) -> web.Response:
        thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
        blocks = [thought, {"type": "text", "text": "Yes\x00, "}, {"type": "text", "text": "it is."}]
        message = {"id": "1", "type": "message", "role": "assistant", "model": "m", "content": blocks}
        usage = {"input_tokens": 1, "output_tokens": 1}
        return web.json_response(message | {"stop_reason": "end_turn", "usage": usage})

    async with serving(answer) as url, _model(url) as model:
        assert (await model.reply(QUESTION)).text == "Yes, it is."


@pytest.mark.parametrize(
    ("status", "kind", "transient"),
    [
        (Status(400, "messages: bad"), "bad_request", False),
        (TOO_LONG, "context_overflow", False),
        (Status(400, "input length and `max_tokens` exceed context limit: 9 + 2 > 10"), "context_overflow", False),
        (Status(400, "Your credit balance is too low to access the Anthropic API."), "rate_limited", False),
        (Status(401, "invalid x-api-key"), "unauthorised", False),
        (Status(402, "pay"), "rate_limited", False),
        (Status(403, "not yours"), "unauthorised", False),
        (Status(404, "model: claude-test"), "unknown_model", False),
        (Status(413, "Request exceeds the maximum size"), "bad_request", False),
        (Status(429, "slow down"), "rate_limited", True),
        (Status(500, "Internal server error"), "server_error", True),
        (Status(504, "timed out"), "server_error", True),
        (OVERLOADED, "server_error", True),
    ],
)
async def test_every_refusal_has_its_kind(
    server: ScriptedAnthropic, status: Status, kind: FailureKind, transient: bool
) -> None:
    server.script(*[status] * 3)
    failure = await _failure(server.url)
    assert (failure.kind, failure.transient) == (kind, transient)
    assert re.search(rf"'claude-test' at {server.url} answered {status.status} \([a-z_]+\); ", failure.detail)
    assert failure.words == status.message
    assert len(server.requests) == (3 if transient else 1)


async def test_a_passing_refusal_is_tried_again_after_the_time_that_was_asked_for(server: ScriptedAnthropic) -> None:
    server.script(Status(429, retry_after=3), OVERLOADED, Reply("there"))
    slept = Slept()
    async with _model(server.url, patience=Patience(1000.0, sleep=slept.sleep, chance=lambda: 1.0)) as model:
        assert (await model.reply(QUESTION)).text == "there"
    assert slept == [4.0, 2.0]
    assert len({json.dumps(request.body) for request in server.requests}) == 1


async def test_a_server_that_is_down_is_unreachable() -> None:
    failure = await _failure(unused_url())
    assert (failure.kind, failure.transient) == ("unreachable", True)


async def test_a_cut_connection_is_tried_again(server: ScriptedAnthropic) -> None:
    server.script(Cut(), Reply("there"))
    async with _model(server.url) as model:
        assert (await model.reply(QUESTION)).text == "there"


async def test_a_server_that_does_not_answer_in_time_is_given_up(server: ScriptedAnthropic) -> None:
    gates = [server.hang() for _ in range(3)]
    failure = await _failure(server.url, timeout=1.0)
    assert (failure.kind, len(server.requests)) == ("timeout", len(gates))


async def test_a_cancelled_reply_is_cancelled_at_the_server_too(server: ScriptedAnthropic) -> None:
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
        (Reply("", finish_reason="length"), "empty_reply", "raise llm.max_reply_tokens"),
        (Reply("", finish_reason="content_filter"), "refused", "declined to answer"),
    ],
)
async def test_a_reply_without_text_is_a_failure(
    server: ScriptedAnthropic, reply: Reply, kind: FailureKind, words: str
) -> None:
    server.script(reply)
    failure = await _failure(server.url)
    assert (failure.kind, failure.transient) == (kind, False)
    assert words in failure.detail


@pytest.mark.parametrize("text", ["<html>welcome</html>", "{", "[]", "{}", '{"content": null}', '{"content": [null]}'])
async def test_an_answer_that_is_no_message_points_to_the_base_url(text: str) -> None:
    async with serving(lambda _: web.Response(text=text, content_type="application/json")) as url:
        failure = await _failure(url)
    assert failure.kind == "server_error"
    assert "check llm.base_url" in failure.detail


async def test_errors_show_neither_keys_nor_what_people_wrote(server: ScriptedAnthropic) -> None:
    server.script(Status(401, "wrong key sk-secret"))
    failure = await _failure(server.url.replace("http://", "http://user:hush@"), api_key="sk-secret")
    assert failure.words == "wrong key (hidden)"
    assert not any(secret in failure.detail for secret in ("sk-secret", "hush", "alice"))


async def test_a_known_model_passes_the_check_with_one_request(server: ScriptedAnthropic) -> None:
    async with _model(server.url) as model:
        await model.check()
    assert server.looked_up == ["/v1/models/claude-test"]


async def test_an_unknown_model_fails_the_check_and_is_told_what_there_is(server: ScriptedAnthropic) -> None:
    async with _model(server.url, model="claude-old") as model:
        with pytest.raises(ModelFailed) as failed:
            await model.check()
    assert failed.value.kind == "unknown_model"
    assert "model 'claude-old'" in failed.value.detail
    assert "Available: claude-test." in failed.value.detail


async def test_a_wrong_key_fails_the_check(server: ScriptedAnthropic) -> None:
    server.api_key = "sk-other"
    async with _model(server.url) as model:
        with pytest.raises(ModelFailed) as failed:
            await model.check()
    assert failed.value.kind == "unauthorised"
    assert "answered 401; check llm.api_key" in failed.value.detail


@pytest.mark.parametrize("status", [404, 500, 529])
async def test_a_server_that_tells_nothing_of_models_is_only_logged(status: int) -> None:
    async with serving(lambda _: web.Response(status=status)) as url, _model(url) as model:
        with capture_logs() as logs:
            await model.check()
    assert [entry["event"] for entry in logs] == ["model_check_impossible"]


async def test_the_factory_makes_the_provider_that_is_named(server: ScriptedAnthropic) -> None:
    model = build_model("anthropic", base_url=server.url, model="claude-test", api_key="sk-key", temperature=0.5)
    await model.check()
    assert (await model.reply(QUESTION)).text == "reply 1"
    await model.aclose()


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "anthropic":
            raise ModuleNotFoundError("No module named 'anthropic'", name="anthropic")
        return real(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "bot.llm.anthropic")
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ProviderNotInstalled, match=r"install Musher with its extra anthropic, .*uv sync --extra"):
        build_model("anthropic", model="claude-test", api_key="sk-key")


@pytest.mark.parametrize(
    "content", [None, "Yes.", [{"type": "text", "text": None}], [{"type": "text", "text": 7}], [{"type": "other"}]]
)
async def test_an_answer_that_is_no_completion_points_to_the_base_url(content: object) -> None:
    message = {"id": "1", "type": "message", "role": "assistant", "model": "m", "content": content}
    usage = {"stop_reason": "end_turn", "usage": {"input_tokens": 4, "output_tokens": 2}}
    async with serving(lambda _: web.json_response(message | usage)) as url:
        failure = await _failure(url)
    assert failure.kind == "server_error"
    assert "no chat completion; check llm.base_url" in failure.detail
