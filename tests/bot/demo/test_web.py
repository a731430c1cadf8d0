"""The browser client: served to who knows its address, built once, and missing in plain words."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from bot.demo.homeserver import Credentials
from bot.demo.web import ClientNotBuilt, build_client, serve_client

NPM = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
test "$1" != "{failing}" || {{ echo "no network"; exit 1; }}
test "$1" = ci || echo built > site/main.js
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is searched for programs before all others but the shell's."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin")
    return folder


def install_npm(path: Path, failing: str = "") -> None:
    (path / "npm").write_text(NPM.format(failing=failing))
    (path / "npm").chmod(0o755)


async def test_it_is_served_below_a_secret_and_logs_in(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("page")
    (tmp_path / "main.js").write_text("program")
    credentials = Credentials("@you:localhost", "MUSHERWEB", "s3cret")
    async with (
        serve_client(tmp_path, "http://127.0.0.1:1", credentials, "!room") as address,
        aiohttp.ClientSession() as http,
    ):
        async with http.get(address) as response:
            assert (response.status, await response.text()) == (200, "page")
            assert "connect-src 'self' http://127.0.0.1:1;" in response.headers["Content-Security-Policy"]
        async with http.get(f"{address}session.json") as response:
            session = await response.json()
            assert (session["accessToken"], session["room_id"]) == ("s3cret", "!room")
            assert response.headers["Cache-Control"] == "no-store"
        origin = address.rsplit("/", 2)[0]
        for outside in (f"{origin}/", f"{origin}/session.json", f"{origin}/guess/", f"{address}../../etc/passwd"):
            async with http.get(outside) as response:
                assert response.status == 404


async def test_it_is_built_once(tmp_path: Path, path: Path) -> None:
    install_npm(path)
    files = await build_client(tmp_path / "web")
    assert sorted(file.name for file in files.iterdir()) == ["index.html", "main.js"]
    assert await build_client(tmp_path / "web") == files
    assert (path / "calls").read_text().splitlines() == [
        "ci --ignore-scripts --no-audit --no-fund",
        "run --silent build",
    ]


async def test_without_npm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClientNotBuilt, match=r"npm is not installed; it comes with Node\.js"):
        await build_client(tmp_path / "web")


async def test_a_build_that_fails_names_its_log_and_is_tried_again(tmp_path: Path, path: Path) -> None:
    install_npm(path, failing="ci")
    with pytest.raises(ClientNotBuilt, match=r"'npm ci .*' failed with exit code 1; .*build\.log tells why"):
        await build_client(tmp_path / "web")
    assert "no network" in (tmp_path / "web" / "build.log").read_text()
    install_npm(path)
    assert (await build_client(tmp_path / "web") / "main.js").exists()
