"""Each kind of trouble with a request becomes one error that says whether to try again, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from email.utils import formatdate
from time import time

import pytest
from aiohttp import web

from bot.matrix.errors import Forbidden, LoggedOut, MatrixError, RateLimited, Refused, Unreachable
from bot.matrix.wire import DEFAULT_PAUSE_S, LONGEST_PAUSE_S, Wire
from tests.bot.matrix.fake import IDENTITY, USER, FakeHomeserver, Route, error, html, truncated


@pytest.fixture
async def wire(fake: FakeHomeserver) -> AsyncIterator[Wire]:
    connection = Wire(fake.url, USER)
    connection.adopt(IDENTITY)
    yield connection
    await connection.close()


async def failure(wire: Wire, fake: FakeHomeserver, route: Route) -> MatrixError:
    """The error that `route`'s answer becomes. One request is made for it, never more."""
    fake.routes["/there"] = route
    with pytest.raises(MatrixError) as caught:
        await wire.get("there", room="!room:fake")
    assert len(fake.asked("/there")) == 1
    return caught.value


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_server_error_passes(status: int, wire: Wire, fake: FakeHomeserver) -> None:
    assert isinstance(await failure(wire, fake, lambda _: error(status, "M_UNKNOWN")), Unreachable)


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 500, 502])
async def test_an_html_page_is_no_answer(status: int, wire: Wire, fake: FakeHomeserver) -> None:
    assert isinstance(await failure(wire, fake, lambda _: html(status)), Unreachable)


@pytest.mark.parametrize("body", [b"", b"null", b"[1, 2]", b'{"a": ', b"\xff\xfe\xfd", b"[" * 100_000, b'"text"'])
async def test_what_is_no_json_object_is_no_answer(body: bytes, wire: Wire, fake: FakeHomeserver) -> None:
    answer = web.Response(body=body, content_type="application/json")
    assert isinstance(await failure(wire, fake, lambda _: answer), Unreachable)


@pytest.mark.parametrize("status", [404, 405])
async def test_who_does_not_know_a_request_about_a_room_is_not_the_homeserver(
    status: int, wire: Wire, fake: FakeHomeserver
) -> None:
    """A proxy that is being set up, or a worker that it asks by mistake. What it refuses must not be dropped."""
    assert isinstance(await failure(wire, fake, lambda _: error(status, "M_UNRECOGNIZED")), Unreachable)


@pytest.mark.parametrize("location", ["/elsewhere", "https://login.example.org/", "http://[", ""])
async def test_a_redirect_is_not_followed(location: str, wire: Wire, fake: FakeHomeserver) -> None:
    """Whoever sends it stands before the homeserver for a while."""
    answer = web.Response(status=302, headers={"Location": location})
    assert isinstance(await failure(wire, fake, lambda _: answer), Unreachable)
    assert fake.asked("/elsewhere") == []


async def test_an_answer_that_breaks_off_is_no_answer(wire: Wire, fake: FakeHomeserver) -> None:
    assert isinstance(await failure(wire, fake, truncated), Unreachable)


async def test_a_connection_that_is_closed_without_an_answer_is_not_tried_again_at_once(
    wire: Wire, fake: FakeHomeserver
) -> None:
    def hang_up(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    assert isinstance(await failure(wire, fake, hang_up), Unreachable)


async def test_a_server_that_does_not_answer_in_time_is_unreachable(wire: Wire, fake: FakeHomeserver) -> None:
    over = asyncio.Event()

    async def silence(_: web.Request) -> web.Response:
        await over.wait()
        return web.Response()

    fake.routes["/there"] = silence
    with pytest.raises(Unreachable, match=r"no answer within 0\.05 s"):
        await wire.get("there", timeout_s=0.05)
    over.set()


@pytest.mark.parametrize(
    ("header", "body_ms", "pause"),
    [
        ("12", 3000, 12),
        (None, 3000, 3),
        (None, None, DEFAULT_PAUSE_S),
        ("soon", None, DEFAULT_PAUSE_S),
        ("soon", 3000, 3),
        ("-4", None, DEFAULT_PAUSE_S),
        (None, -1, DEFAULT_PAUSE_S),
        (None, "long", DEFAULT_PAUSE_S),
        (None, 10**400, LONGEST_PAUSE_S),
        ("99999999", None, LONGEST_PAUSE_S),
    ],
)
async def test_a_rate_limit_tells_the_pause(
    header: str | None, body_ms: object, pause: float, wire: Wire, fake: FakeHomeserver
) -> None:
    headers = {"Retry-After": header} if header else None
    fields = {} if body_ms is None else {"retry_after_ms": body_ms}
    limited = await failure(wire, fake, lambda _: error(429, "M_LIMIT_EXCEEDED", headers=headers, **fields))
    assert isinstance(limited, RateLimited)
    assert limited.retry_after_s == pause


async def test_a_proxys_rate_limit_counts_too(wire: Wire, fake: FakeHomeserver) -> None:
    page = html(429)
    page.headers["Retry-After"] = formatdate(time() + 60, usegmt=True)
    limited = await failure(wire, fake, lambda _: page)
    assert isinstance(limited, RateLimited)
    assert 50 < limited.retry_after_s <= 60


@pytest.mark.parametrize(
    ("status", "errcode"), [(401, "M_UNKNOWN_TOKEN"), (401, "M_MISSING_TOKEN"), (403, "M_USER_DEACTIVATED")]
)
async def test_an_ended_login_is_told(status: int, errcode: str, wire: Wire, fake: FakeHomeserver) -> None:
    assert isinstance(await failure(wire, fake, lambda _: error(status, errcode)), LoggedOut)


@pytest.mark.parametrize("errcode", ["M_RESOURCE_LIMIT_EXCEEDED", "M_CONSENT_NOT_GIVEN", "M_USER_SUSPENDED"])
async def test_a_homeserver_or_an_account_that_is_suspended_is_waited_for(
    errcode: str, wire: Wire, fake: FakeHomeserver
) -> None:
    suspended = await failure(wire, fake, lambda _: error(403, errcode))
    assert isinstance(suspended, Unreachable)
    assert f"{errcode}: the reason" in str(suspended)


async def test_what_is_forbidden_names_the_room_and_the_reason(wire: Wire, fake: FakeHomeserver) -> None:
    forbidden = await failure(wire, fake, lambda _: error(403, "M_FORBIDDEN"))
    assert isinstance(forbidden, Forbidden)
    assert (forbidden.room_id, forbidden.reason) == ("!room:fake", "the reason")


@pytest.mark.parametrize(
    ("answer", "errcode"),
    [
        (error(400, "M_INVALID_PARAM"), "M_INVALID_PARAM"),
        (error(404, "M_NOT_FOUND"), "M_NOT_FOUND"),
        (error(413, "M_TOO_LARGE"), "M_TOO_LARGE"),
        (html(413), "M_TOO_LARGE"),
    ],
)
async def test_a_refusal_for_good_is_told(answer: web.Response, errcode: str, wire: Wire, fake: FakeHomeserver) -> None:
    refused = await failure(wire, fake, lambda _: answer)
    assert isinstance(refused, Refused)
    assert refused.errcode == errcode


async def test_a_servers_long_words_are_cut(wire: Wire, fake: FakeHomeserver) -> None:
    refused = await failure(wire, fake, lambda _: error(400, "M_UNKNOWN", error="line\n" * 10_000))
    assert "\n" not in str(refused)
    assert len(str(refused)) < 600


async def test_the_token_stands_in_no_address(wire: Wire, fake: FakeHomeserver) -> None:
    fake.routes["/there"] = lambda _: {}
    await wire.get("there", query={"a": "b c&d"})
    (request,) = fake.requests
    assert request.headers["Authorization"] == f"Bearer {IDENTITY.access_token}"
    assert dict(request.query) == {"a": "b c&d"}
    await wire.request("GET", "/there", as_nobody=True)
    assert "Authorization" not in fake.requests[-1].headers


async def test_ids_are_quoted_in_the_path(wire: Wire, fake: FakeHomeserver) -> None:
    fake.routes["/send"] = lambda _: {}
    await wire.put("rooms", "!a/b?c#d%2F é:fake", "send", body={})
    assert fake.requests[0].match_info["path"].split("rooms/")[1] == "!a/b?c#d%2F é:fake/send"
