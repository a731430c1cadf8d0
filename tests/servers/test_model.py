"""The scripted model, as OpenAI's own client sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from tests.servers.model import Cut, ModelRequest, Reply, ScriptedModel, Status

HELLO: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hello there"},
]


@pytest.fixture
async def client(model: ScriptedModel) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=model.url, api_key="k", max_retries=0, timeout=20) as connected:
        yield connected


async def ask(client: openai.AsyncOpenAI, model: str = "test-model") -> ChatCompletion:
    return await client.chat.completions.create(model=model, messages=HELLO)


async def listen(client: openai.AsyncOpenAI, words: list[str], **options: Any) -> int | None:
    """Append what is streamed to `words` and return the tokens used, if the stream says so."""
    used = None
    stream = await client.chat.completions.create(model="test-model", messages=HELLO, stream=True, **options)
    async for chunk in stream:
        words += [choice.delta.content for choice in chunk.choices if choice.delta.content]
        used = chunk.usage.total_tokens if chunk.usage else used
    return used


async def test_the_default_reply_tells_the_number_of_the_request(client: openai.AsyncOpenAI) -> None:
    first, second = await ask(client), await ask(client)
    assert [r.choices[0].message.content for r in (first, second)] == ["reply 1", "reply 2"]
    assert first.choices[0].finish_reason == "stop"
    assert first.usage is not None
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (4, 2)


async def test_requests_are_kept_with_body_and_headers_in_order(
    client: openai.AsyncOpenAI, model: ScriptedModel
) -> None:
    await ask(client)
    await listen(client, [])
    assert [request.number for request in model.requests] == [1, 2]
    assert model.requests[0].messages == HELLO
    assert model.requests[0].text == "hello there"
    assert model.requests[0].headers["authorization"] == "Bearer k"
    assert model.requests[1].body["stream"] is True


async def test_a_reply_can_be_made_from_the_request(client: openai.AsyncOpenAI, model: ScriptedModel) -> None:
    def echo(request: ModelRequest) -> str:
        return request.text.upper()

    model.answer = echo
    assert (await ask(client)).choices[0].message.content == "HELLO THERE"


async def test_a_stream_arrives_word_by_word_and_ends_with_its_usage(
    client: openai.AsyncOpenAI, model: ScriptedModel
) -> None:
    model.script(Reply("one two\n\nthree"))
    words: list[str] = []
    assert await listen(client, words, stream_options={"include_usage": True}) == 7
    assert words == ["one ", "two\n\n", "three"]


async def test_a_stream_carries_no_usage_unless_asked(client: openai.AsyncOpenAI) -> None:
    assert await listen(client, []) is None


async def test_models_are_listed_and_shown_by_name(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["test-model"]
    assert (await client.models.retrieve("test-model")).id == "test-model"


async def test_an_unknown_model_is_not_found(client: openai.AsyncOpenAI, model: ScriptedModel) -> None:
    with pytest.raises(openai.NotFoundError) as shown:
        await client.models.retrieve("other/model")
    with pytest.raises(openai.NotFoundError) as asked:
        await ask(client, "other/model")
    assert shown.value.code == asked.value.code == "model_not_found"
    assert len(model.requests) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, openai.AuthenticationError), (404, openai.NotFoundError), (500, openai.InternalServerError)],
)
async def test_a_scripted_status_refuses_one_request(
    client: openai.AsyncOpenAI, model: ScriptedModel, status: int, error: type[openai.APIStatusError]
) -> None:
    model.script(Status(status, "no", code="because"))
    with pytest.raises(error) as refused:
        await ask(client)
    assert refused.value.code == "because"
    assert (await ask(client)).choices[0].message.content == "reply 2"


async def test_too_many_requests_says_when_to_come_back(client: openai.AsyncOpenAI, model: ScriptedModel) -> None:
    model.script(Status(429, retry_after=7))
    with pytest.raises(openai.RateLimitError) as refused:
        await ask(client)
    assert refused.value.response.headers["retry-after"] == "7"


async def test_a_wrong_key_is_refused_where_a_key_is_set(client: openai.AsyncOpenAI, model: ScriptedModel) -> None:
    model.api_key = "other"
    with pytest.raises(openai.AuthenticationError):
        await ask(client)
    assert model.requests == []


async def test_a_request_hangs_until_it_is_released(client: openai.AsyncOpenAI, model: ScriptedModel) -> None:
    gate = model.hang()
    asking = asyncio.create_task(ask(client))
    await model.wait_for_requests(1)
    assert (await ask(client)).choices[0].message.content == "reply 2"
    assert not asking.done()
    gate.set()
    assert (await asking).choices[0].message.content == "reply 1"


async def test_a_stream_can_pause_in_the_middle(client: openai.AsyncOpenAI, model: ScriptedModel) -> None:
    gate = asyncio.Event()
    model.script(Reply("one two", gate, before_gate=1))
    stream = await client.chat.completions.create(model="test-model", messages=HELLO, stream=True)
    words: list[str] = []
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            words.append(chunk.choices[0].delta.content)
            assert gate.is_set() == (len(words) == 2)
            gate.set()
    assert words == ["one ", "two"]


async def test_an_empty_reply_is_an_empty_string(client: openai.AsyncOpenAI, model: ScriptedModel) -> None:
    model.script(Reply(""))
    assert (await ask(client)).choices[0].message.content == ""


async def test_a_connection_is_cut_before_any_answer(client: openai.AsyncOpenAI, model: ScriptedModel) -> None:
    model.script(Cut())
    with pytest.raises(openai.APIConnectionError):
        await ask(client)
    assert len(model.requests) == 1


async def test_a_connection_is_cut_in_the_middle_of_a_stream(client: openai.AsyncOpenAI, model: ScriptedModel) -> None:
    model.script(Cut("one two three", words=2))
    words: list[str] = []
    with pytest.raises(Exception, match=r"closed|incomplete|disconnected|reset|Connection") as broken:
        await listen(client, words)
    assert not isinstance(broken.value, openai.APIStatusError)
    assert words == ["one ", "two "]


async def test_a_body_that_is_no_json_is_refused(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        await client.post("/chat/completions", cast_to=object, content=b"{")


async def test_a_stopped_server_refuses_and_comes_back_at_the_same_url(
    client: openai.AsyncOpenAI, model: ScriptedModel
) -> None:
    url = model.url
    model.hang()
    asking = asyncio.create_task(ask(client))
    await model.wait_for_requests(1)
    await model.stop()
    with pytest.raises(openai.APIConnectionError):
        await asking
    with pytest.raises(openai.APIConnectionError):
        await ask(client)
    await model.start()
    assert model.url == url
    assert (await ask(client)).choices[0].message.content == "reply 2"
