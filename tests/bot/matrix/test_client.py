"""One device for life: how the bot logs in, goes on with a login, and says what is wrong when it can't."""

from __future__ import annotations

import socket
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bot.matrix.errors import LoggedOut, LoginRefused, NotAHomeserver, RateLimited, StillLoggedIn, Unreachable
from bot.matrix.model import Credentials, Identity, TriedLogin
from tests.bot.matrix.conftest import Opener
from tests.bot.matrix.fake import IDENTITY, TOKEN, USER, FakeHomeserver, error, html
from tests.conftest import PersonMaker


async def revoke(url: str, token: str) -> None:
    """Log the token's device out, as its owner may in any client."""
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers) as http, http.post(f"{url}/_matrix/client/v3/logout") as response:
        assert response.status == 200


async def test_a_password_makes_a_device(account: Credentials, open_client: Opener) -> None:
    identity = await open_client(account).connect()
    assert identity.user_id == account.user_id
    assert identity.device_id
    assert identity.access_token


async def test_a_stored_login_is_used_again_without_a_new_device(
    account: Credentials, identity: Identity, open_client: Opener
) -> None:
    with capture_logs() as logs:
        assert await open_client(account).connect(identity) == identity
    assert [line["event"] for line in logs] == ["login_resumed"]


async def test_a_revoked_login_is_renewed_by_password_for_the_same_device(
    account: Credentials, identity: Identity, open_client: Opener
) -> None:
    await revoke(account.homeserver, identity.access_token)
    client = open_client(account)
    renewed = await client.connect(identity)
    assert renewed.device_id == identity.device_id
    assert renewed.access_token != identity.access_token
    assert (await client.sync(None, 0)).next_batch


async def test_a_client_that_was_logged_out_while_running_connects_again(
    account: Credentials, open_client: Opener
) -> None:
    client = open_client(account)
    identity = await client.connect()
    await revoke(account.homeserver, identity.access_token)
    with pytest.raises(LoggedOut):
        await client.sync(None, 0)
    assert (await client.connect(identity)).device_id == identity.device_id
    assert (await client.sync(None, 0)).next_batch


async def test_a_revoked_login_without_a_password_says_what_to_set(
    account: Credentials, identity: Identity, open_client: Opener
) -> None:
    await revoke(account.homeserver, identity.access_token)
    with pytest.raises(LoggedOut, match=rf"{account.user_id}.*matrix\.password") as caught:
        await open_client(replace(account, password=None)).connect(identity)
    assert caught.value.soft is False


async def test_a_configured_token_logs_in(account: Credentials, identity: Identity, open_client: Opener) -> None:
    by_token = Credentials(account.homeserver, account.user_id, access_token=identity.access_token)
    assert await open_client(by_token).connect() == identity
    assert await open_client(replace(by_token, device_id=identity.device_id)).connect() == identity


async def test_a_new_configured_token_helps_when_the_stored_one_is_revoked(
    account: Credentials, identity: Identity, open_client: Opener
) -> None:
    other = await open_client(replace(account, device_id="OTHER")).connect()
    await revoke(account.homeserver, identity.access_token)
    by_token = replace(account, password=None, access_token=other.access_token, device_id="OTHER")
    assert await open_client(by_token).connect(identity) == other


async def test_a_configured_device_id_is_taken_for_a_first_login(account: Credentials, open_client: Opener) -> None:
    assert (await open_client(replace(account, device_id="SLED")).connect()).device_id == "SLED"


async def test_somebody_elses_token_is_refused(
    account: Credentials, make_person: PersonMaker, open_client: Opener
) -> None:
    alice = await make_person("alice")
    with pytest.raises(LoginRefused, match=f"{account.user_id}.*belongs to {alice.user_id}"):
        await open_client(replace(account, access_token=alice.access_token)).connect()


async def test_a_token_of_another_device_is_refused(
    account: Credentials, identity: Identity, open_client: Opener
) -> None:
    wrong = replace(account, access_token=identity.access_token, device_id="OTHER")
    with pytest.raises(LoginRefused, match=f"device {identity.device_id}, not OTHER"):
        await open_client(wrong).connect()


async def test_a_stored_login_of_another_account_is_refused(account: Credentials, open_client: Opener) -> None:
    stored = Identity("@somebody:else", "DEVICE", "token")
    with pytest.raises(LoginRefused, match=r"holds the login of @somebody:else.*store\.path"):
        await open_client(account).connect(stored)


async def test_a_wrong_password_names_the_user_and_the_server_and_not_the_password(
    account: Credentials, open_client: Opener
) -> None:
    with pytest.raises(LoginRefused, match=r"check matrix\.user_id and matrix\.password") as caught:
        await open_client(replace(account, password="hunter2")).connect()
    assert account.user_id in str(caught.value)
    assert account.homeserver in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_no_password_and_no_token_is_refused(account: Credentials, open_client: Opener) -> None:
    with pytest.raises(LoginRefused, match="neither a password nor an access token"):
        await open_client(replace(account, password=None)).connect()


async def test_a_server_without_password_login_is_told_from_a_wrong_password(
    fake: FakeHomeserver, open_client: Opener
) -> None:
    fake.routes["/login"] = lambda _: error(400, "M_UNKNOWN", error="Unknown login type m.login.password")
    with pytest.raises(LoginRefused, match=r"Unknown login type.*matrix\.access_token"):
        await open_client(Credentials(fake.url, USER, "secret")).connect()


async def test_a_closed_account_is_refused(fake: FakeHomeserver, open_client: Opener) -> None:
    fake.routes["/login"] = lambda _: error(403, "M_USER_DEACTIVATED")
    with pytest.raises(LoginRefused, match="the account is closed"):
        await open_client(Credentials(fake.url, USER, "secret")).connect()


async def test_a_rate_limited_login_asks_for_a_pause(fake: FakeHomeserver, open_client: Opener) -> None:
    fake.routes["/login"] = lambda _: error(429, "M_LIMIT_EXCEEDED", retry_after_ms=7000)
    with pytest.raises(RateLimited) as caught:
        await open_client(Credentials(fake.url, USER, "secret")).connect()
    assert caught.value.retry_after_s == 7


async def test_a_login_without_its_token_is_no_login(fake: FakeHomeserver, open_client: Opener) -> None:
    fake.routes["/login"] = lambda _: {"user_id": USER}
    with pytest.raises(Unreachable):
        await open_client(Credentials(fake.url, USER, "secret")).connect()


async def test_a_token_without_a_device_is_refused(fake: FakeHomeserver, open_client: Opener) -> None:
    fake.routes["/account/whoami"] = lambda _: {"user_id": USER}
    with pytest.raises(LoginRefused, match="belongs to no device"):
        await open_client(Credentials(fake.url, USER, access_token=TOKEN)).connect()


async def test_a_soft_logout_is_told_apart(fake: FakeHomeserver, open_client: Opener) -> None:
    fake.routes["/account/whoami"] = lambda _: error(401, "M_UNKNOWN_TOKEN", soft_logout=True)
    with pytest.raises(LoggedOut) as caught:
        await open_client(fake.credentials).connect()
    assert caught.value.soft is True


@pytest.mark.parametrize(
    "answer", [html(200), html(404), error(404, "M_UNRECOGNIZED"), {"hello": "world"}], ids=["200", "404", "json", "no"]
)
async def test_an_address_without_a_homeserver_is_named(
    answer: aiohttp.web.Response | dict[str, object], fake: FakeHomeserver, open_client: Opener
) -> None:
    fake.routes["/versions"] = lambda _: answer
    with pytest.raises(NotAHomeserver, match=rf"{fake.url} is no Matrix homeserver.*matrix\.homeserver"):
        await open_client(fake.credentials).connect()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_an_address_that_only_leads_to_the_homeserver_is_named(
    status: int, fake: FakeHomeserver, open_client: Opener
) -> None:
    """Followed, a login would become a GET, and the next request would go without its token."""
    async with FakeHomeserver() as moved:
        elsewhere = {"Location": f"{fake.url}/_matrix/client/versions"}
        moved.routes["/versions"] = lambda _: web.Response(status=status, headers=elsewhere)
        with pytest.raises(NotAHomeserver, match=rf"{moved.url} is no.*HTTP status {status}.*{fake.url}/.*homeserver"):
            await open_client(Credentials(moved.url, USER, "secret")).connect()
    assert fake.requests == []


@pytest.mark.parametrize("url", ["not a url", "ftp://example.org", "http://", ""])
async def test_an_address_that_is_no_url_is_named(url: str, open_client: Opener) -> None:
    with pytest.raises(NotAHomeserver, match=r"matrix\.homeserver"):
        await open_client(Credentials(url, USER, "secret")).connect()


async def test_a_homeserver_that_is_down_may_come_back(fake: FakeHomeserver, open_client: Opener) -> None:
    fake.routes["/versions"] = lambda _: html(502)
    with pytest.raises(Unreachable, match="502"):
        await open_client(fake.credentials).connect()


async def test_an_unreachable_homeserver_is_named(open_client: Opener) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}"
        with pytest.raises(Unreachable, match=f"no usable answer from {url}"):
            await open_client(Credentials(url, USER, "secret")).connect()


async def test_a_trailing_slash_in_the_address_is_no_matter(account: Credentials, open_client: Opener) -> None:
    assert await open_client(replace(account, homeserver=account.homeserver + "/")).connect()


def test_secrets_are_not_shown() -> None:
    credentials = Credentials("http://x", USER, password="hunter2", access_token="hunter3")
    assert "hunter" not in repr(credentials)
    assert "hunter" not in repr(Identity(USER, "SLED", "hunter4"))


async def devices(identity: Identity, url: str) -> set[str]:
    headers = {"Authorization": f"Bearer {identity.access_token}"}
    async with aiohttp.ClientSession(headers=headers) as http, http.get(f"{url}/_matrix/client/v3/devices") as response:
        return {device["device_id"] for device in (await response.json())["devices"]}


async def test_trying_a_stored_login_asks_only_who_it_is(
    account: Credentials, identity: Identity, open_client: Opener
) -> None:
    assert await open_client(account).try_login(identity) == TriedLogin(identity.device_id, by_password=False)
    assert await devices(identity, account.homeserver) == {identity.device_id}


async def test_trying_a_password_leaves_no_device_behind(
    account: Credentials, identity: Identity, open_client: Opener
) -> None:
    tried = await open_client(account).try_login()
    assert tried.by_password
    assert tried.device_id != identity.device_id
    assert await devices(identity, account.homeserver) == {identity.device_id}


async def test_trying_after_the_stored_login_has_ended_leaves_its_device_alone(
    fake: FakeHomeserver, open_client: Opener
) -> None:
    async def log_in(request: aiohttp.web.Request) -> dict[str, str]:
        asked_for = (await request.json()).get("device_id", "TRIED")
        return {"user_id": USER, "device_id": asked_for, "access_token": "tried"}

    fake.routes["/account/whoami"] = lambda _: error(401, "M_UNKNOWN_TOKEN", soft_logout=True)
    fake.routes["/login"] = log_in
    fake.routes["/logout"] = lambda request: {} if request.headers["Authorization"] == "Bearer tried" else html(500)
    tried = await open_client(Credentials(fake.url, USER, "secret")).try_login(IDENTITY)
    assert tried == TriedLogin("TRIED", by_password=True)


async def test_a_tried_login_that_can_not_be_ended_is_named(fake: FakeHomeserver, open_client: Opener) -> None:
    fake.routes["/login"] = lambda _: {"user_id": USER, "device_id": "TRIED", "access_token": "tried"}
    with pytest.raises(StillLoggedIn, match="the device TRIED that tried it could not be logged out"):
        await open_client(Credentials(fake.url, USER, "secret")).try_login()


async def test_the_homeserver_tells_its_versions(fake: FakeHomeserver, open_client: Opener) -> None:
    fake.routes["/versions"] = lambda _: {"versions": ["v1.11", 7, "v1.12"]}
    assert await open_client(fake.credentials).check_homeserver() == ["v1.11", "v1.12"]
