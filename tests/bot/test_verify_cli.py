"""`musher verify-status` against a real homeserver."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from bot import cli
from bot.demo.homeserver import Homeserver
from bot.matrix import Credentials, EncryptionSettings, MatrixClient
from bot.wiring import ACCESS_TOKEN, DEVICE_ID, USER_ID
from crdt import Store
from tests.servers.synapse import PASSWORD


async def _config(folder: Path, synapse: Homeserver, user_id: str) -> Path:
    file = folder / "config.toml"
    file.write_text(
        f'[matrix]\nhomeserver = "{synapse.url}"\nuser_id = "{user_id}"\npassword = "{PASSWORD}"\n'
        f'allowed_users = ["@*:localhost"]\n[store]\npath = "{folder}/musher.db"\n[llm]\nprovider = "digest"\n'
    )
    return file


async def _start_once(folder: Path, synapse: Homeserver, user_id: str, *, encrypts: bool) -> None:
    credentials = Credentials(synapse.url, user_id, PASSWORD)
    async with Store.open(folder / "musher.db") as store:
        options = EncryptionSettings(beside=store.path, password=PASSWORD) if encrypts else None
        client = MatrixClient(credentials, options, store)
        login = await client.connect()
        await client.close()
        await store.write_settings(
            {USER_ID: login.user_id, DEVICE_ID: login.device_id, ACCESS_TOKEN: login.access_token}
        )


@pytest.mark.parametrize(
    ("encrypts", "code", "words"),
    [
        (True, 0, "a device that its owner vouches for"),
        (False, 1, "a device that nobody vouches for"),
    ],
)
async def test_it_tells_what_others_see(
    synapse: Homeserver,
    unique: Callable[[str], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    encrypts: bool,
    code: int,
    words: str,
) -> None:
    user_id = await synapse.register(unique("musher"), PASSWORD)
    config = await _config(tmp_path, synapse, user_id)
    await _start_once(tmp_path, synapse, user_id, encrypts=encrypts)
    assert await asyncio.to_thread(cli.main, ["verify-status", "--config", str(config)]) == code
    assert words in capsys.readouterr().out


async def test_before_the_first_start_it_says_so(
    synapse: Homeserver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = await _config(tmp_path, synapse, "@nobody:localhost")
    assert await asyncio.to_thread(cli.main, ["verify-status", "--config", str(config)]) == 1
    assert "start 'musher run' first" in capsys.readouterr().err
    config.write_text(config.read_text().replace("/musher.db", f"/{'d' * 300}/musher.db"))
    assert await asyncio.to_thread(cli.main, ["verify-status", "--config", str(config)]) == 1
    assert "check that its folder exists" in capsys.readouterr().err


async def test_a_homeserver_that_is_away_is_told_of_in_one_line(
    synapse: Homeserver, unique: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    user_id = await synapse.register(unique("musher"), PASSWORD)
    config = await _config(tmp_path, synapse, user_id)
    await _start_once(tmp_path, synapse, user_id, encrypts=False)
    config.write_text(config.read_text().replace(synapse.url, "http://127.0.0.1:1"))
    assert await asyncio.to_thread(cli.main, ["verify-status", "--config", str(config)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "http://127.0.0.1:1 gave no answer about the bot's keys" in line
