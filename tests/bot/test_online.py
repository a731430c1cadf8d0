"""`musher check --online`: a real homeserver, real databases, and models of every mood."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bot import cli, online
from bot.config import Config
from bot.demo.homeserver import Homeserver
from bot.llm import ProviderNotInstalled
from bot.matrix import Credentials, Identity, MatrixClient
from bot.online import REPLY_TOKENS, Finding, try_out
from bot.wiring import ACCESS_TOKEN, DEVICE_ID, USER_ID
from crdt import Store
from tests.servers.anthropic import ScriptedAnthropic
from tests.servers.model import Reply, ScriptedModel, Status
from tests.servers.synapse import PASSWORD

MATRIX_API = "/_matrix/client/v3"


@pytest.fixture
async def account(synapse: Homeserver, unique: Callable[[str], str]) -> Credentials:
    return Credentials(synapse.url, await synapse.register(unique("musher"), PASSWORD), PASSWORD)


def _config(folder: Path, account: Credentials, **llm: Any) -> Config:
    matrix = {"homeserver": account.homeserver, "user_id": account.user_id, "password": account.password}
    return Config.model_validate(
        {
            "matrix": matrix | {"allowed_users": ("@*:*",)},
            "store": {"path": folder / "musher.db"},
            "llm": llm or {"provider": "digest"},
        }
    )


async def _findings(config: Config) -> dict[str, Finding]:
    return {finding.part: finding async for finding in try_out(config)}


async def _of_model(folder: Path, **llm: Any) -> Finding:
    nowhere = Credentials(_unused_url(), "@musher:example.org", "secret")
    return (await _findings(_config(folder, nowhere, **llm)))["model"]


def _unused_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


async def _log_in(account: Credentials) -> Identity:
    client = MatrixClient(account)
    try:
        return await client.connect()
    finally:
        await client.close()


async def _keep(store: Store, login: Identity) -> None:
    await store.write_settings({USER_ID: login.user_id, DEVICE_ID: login.device_id, ACCESS_TOKEN: login.access_token})


async def _request(login: Identity, account: Credentials, method: str, path: str) -> Any:
    headers = {"Authorization": f"Bearer {login.access_token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.request(method, f"{account.homeserver}{MATRIX_API}{path}") as response,
    ):
        return await response.json()


async def _devices(login: Identity, account: Credentials) -> set[str]:
    return {device["device_id"] for device in (await _request(login, account, "GET", "/devices"))["devices"]}


async def test_all_works_beside_the_owner_of_the_database_and_nothing_changes(
    tmp_path: Path, account: Credentials, model: ScriptedModel
) -> None:
    login = await _log_in(account)
    async with Store.open(tmp_path / "musher.db") as store:
        await _keep(store, login)
        found = await _findings(_config(tmp_path, account, base_url=model.url, model="test-model"))
        assert await store.read_setting(ACCESS_TOKEN) == login.access_token
    assert list(found) == ["homeserver", "login", "model"]
    assert all(finding.works for finding in found.values())
    assert found["homeserver"].words.startswith(f"{account.homeserver} speaks Matrix up to v1.")
    assert found["login"].words == f"{account.user_id} is logged in, as the device {login.device_id}"
    assert found["model"].words.startswith("test-model answered in ")
    assert await _devices(login, account) == {login.device_id}


async def test_before_the_first_start_the_password_is_tried_and_no_device_nor_database_is_left(
    tmp_path: Path, account: Credentials
) -> None:
    found = await _findings(_config(tmp_path, account))
    assert found["login"] == Finding(
        "login", True, f"{account.user_id} can log in by password (tried and logged out again)"
    )
    login = await _log_in(account)
    assert await _devices(login, account) == {login.device_id}
    assert not os.listdir(tmp_path)


async def test_a_stored_login_that_has_ended_is_told_and_not_renewed(tmp_path: Path, account: Credentials) -> None:
    login = await _log_in(account)
    async with Store.open(tmp_path / "musher.db") as store:
        await _keep(store, login)
    await _request(login, account, "POST", "/logout")
    tried = (await _findings(_config(tmp_path, account)))["login"]
    assert tried.works
    assert tried.words.endswith(f"; the login of the device {login.device_id} has ended and will be made anew")


async def test_a_wrong_password_fails_with_advice(tmp_path: Path, account: Credentials) -> None:
    wrong = Credentials(account.homeserver, account.user_id, "hunter2")
    found = await _findings(_config(tmp_path, wrong))
    assert (found["homeserver"].works, found["login"].works) == (True, False)
    assert "check matrix.user_id and matrix.password" in found["login"].words
    assert "hunter2" not in str(found)


async def test_without_a_homeserver_the_login_is_not_tried_but_the_model_is(tmp_path: Path) -> None:
    nowhere = Credentials(_unused_url(), "@musher:example.org", "secret")
    found = await _findings(_config(tmp_path, nowhere))
    assert [(part, finding.works) for part, finding in found.items()] == [
        ("homeserver", False),
        ("login", False),
        ("model", True),
    ]
    assert f"no usable answer from {nowhere.homeserver}" in found["homeserver"].words
    assert found["login"].words.startswith("not tried")


async def test_a_database_that_can_not_be_read_is_told_and_the_rest_is_tried(
    tmp_path: Path, account: Credentials
) -> None:
    (tmp_path / "musher.db").write_text("this is no database, but a text that somebody put here by mistake")
    found = await _findings(_config(tmp_path, account))
    assert [(part, finding.works) for part, finding in found.items()] == [
        ("homeserver", True),
        ("database", False),
        ("login", True),
        ("model", True),
    ]
    assert "musher.db" in found["database"].words


async def test_the_login_of_another_account_in_the_database_fails(tmp_path: Path, account: Credentials) -> None:
    async with Store.open(tmp_path / "musher.db") as store:
        await _keep(store, Identity("@other:example.org", "D", "t"))
    tried = (await _findings(_config(tmp_path, account)))["login"]
    assert not tried.works
    assert "holds the login of @other:example.org" in tried.words


async def test_the_model_is_asked_once_for_a_few_tokens(tmp_path: Path, model: ScriptedModel) -> None:
    assert (await _of_model(tmp_path, base_url=model.url, model="test-model", temperature=0.5)).works
    [request] = model.requests
    assert (request.body["max_tokens"], request.body["temperature"]) == (REPLY_TOKENS, 0.5)


async def test_an_anthropic_model_is_tried_too(tmp_path: Path) -> None:
    async with ScriptedAnthropic(api_key="sk-key") as server:
        llm = {"provider": "anthropic", "base_url": server.url, "model": "claude-test"}
        assert (await _of_model(tmp_path, **llm, api_key="sk-key")).works
        refused = await _of_model(tmp_path, **llm, api_key="sk-other")
    assert not refused.works
    assert refused.words.endswith("answered 401; check llm.api_key")


async def test_an_unknown_model_fails_before_it_is_asked(tmp_path: Path, model: ScriptedModel) -> None:
    found = await _of_model(tmp_path, base_url=model.url, model="nope")
    assert not found.works
    assert "Available: test-model." in found.words
    assert not model.requests


async def test_without_the_check_of_the_list_the_model_itself_decides(tmp_path: Path, model: ScriptedModel) -> None:
    found = await _of_model(tmp_path, base_url=model.url, model="nope", check_model=False)
    assert not found.works
    assert "check llm.model and llm.base_url" in found.words
    assert len(model.requests) == 1


async def test_a_model_that_fails_is_not_asked_again(tmp_path: Path, model: ScriptedModel) -> None:
    model.script(Status(503, "loading model"))
    found = await _of_model(tmp_path, base_url=model.url, model="test-model")
    assert not found.works
    assert "answered 503" in found.words
    assert found.words.endswith("(it says: loading model)")
    assert len(model.requests) == 1


async def test_a_model_that_is_down_fails_with_advice(tmp_path: Path) -> None:
    found = await _of_model(tmp_path, base_url=f"{_unused_url()}/v1", model="test-model")
    assert not found.works
    assert "can't be reached; check that the server runs and that llm.base_url is right" in found.words


async def test_a_model_that_reasons_away_the_few_tokens_works(tmp_path: Path, model: ScriptedModel) -> None:
    model.script(Reply("<think>hm", finish_reason="length"))
    found = await _of_model(tmp_path, base_url=model.url, model="test-model")
    assert found.works
    assert f"no words for it within {REPLY_TOKENS} tokens" in found.words


async def test_a_provider_that_is_not_installed_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise ProviderNotInstalled("anthropic")

    monkeypatch.setattr(online, "language_model", missing)
    found = await _of_model(tmp_path, provider="anthropic", model="m", api_key="k")
    assert not found.works
    assert "install Musher with its extra anthropic" in found.words


def _musher(folder: Path, account: Credentials, model_url: str) -> subprocess.CompletedProcess[str]:
    (folder / "config.toml").write_text(
        f'[matrix]\nhomeserver = "{account.homeserver}"\nuser_id = "{account.user_id}"\n'
        f'password = "{account.password}"\nallowed_users = ["@*:*"]\n[store]\npath = "musher.db"\n'
        f'[llm]\nbase_url = "{model_url}"\nmodel = "test-model"\n'
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MUSHER_")}
    environ["PYTHONPATH"] = str(Path(cli.__file__).parents[1])
    command = [sys.executable, "-m", "bot", "check", "--online"]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)


async def test_the_command_tells_line_by_line_and_ends_with_0(
    tmp_path: Path, account: Credentials, model: ScriptedModel
) -> None:
    done = await asyncio.to_thread(_musher, tmp_path, account, model.url)
    assert (done.returncode, done.stderr) == (0, "")
    valid, *lines = done.stdout.splitlines()
    assert valid.startswith("the configuration is valid: ")
    assert [line.split()[:2] for line in lines] == [["homeserver", "works"], ["login", "works"], ["model", "works"]]


async def test_the_command_ends_with_1_when_something_fails(tmp_path: Path, account: Credentials) -> None:
    done = await asyncio.to_thread(_musher, tmp_path, account, f"{_unused_url()}/v1")
    assert (done.returncode, done.stderr) == (1, "")
    last = done.stdout.splitlines()[-1]
    assert last.startswith("model       FAILS  model 'test-model' at ")
