"""What keeps the service from starting is told in one line that says what to do; there is never a traceback."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from crdt import Store
from tests.servers.model import ScriptedModel
from tests.system.conftest import MusherMaker
from tests.system.service import MusherProcess, Sections, environment, free_port

NOWHERE = "http://127.0.0.1:9"


async def complaint(musher: MusherProcess, exit_code: int = 1) -> str:
    """Start a service that can't start, and return the one line that it says besides its log."""
    command = [sys.executable, "-m", "bot", "run", "--config", str(musher.config_file)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, cwd=musher.folder, env=environment(), stdout=pipe, stderr=pipe
    )
    async with asyncio.timeout(30):
        output, errors = await process.communicate()
    assert process.returncode == exit_code, errors.decode()
    assert output == b""
    assert b"Traceback" not in errors
    lines = errors.decode().splitlines()
    said = [line for line in lines if not line.startswith("{")]
    logged = [json.loads(line) for line in lines if line.startswith("{")]
    assert not [line for line in logged if "exception" in line]
    assert len(said) == 1, said
    assert lines[-1] == said[0], "it stands at the end, where people look"
    assert said[0].startswith("musher: ")
    return said[0].removeprefix("musher: ")


async def complaint_about(make_musher: MusherMaker, sections: Sections, exit_code: int = 1) -> str:
    return await complaint(await make_musher(sections), exit_code)


async def test_a_wrong_key_is_named_with_the_right_one(make_musher: MusherMaker) -> None:
    said = await complaint_about(make_musher, {"matrix": {"allowed_user": ["@*:localhost"]}}, exit_code=2)
    assert "matrix.allowed_user: unknown key; did you mean allowed_users?" in said


async def test_an_unreachable_homeserver_is_named_with_its_key(make_musher: MusherMaker) -> None:
    said = await complaint(await make_musher(homeserver=NOWHERE))
    assert NOWHERE in said
    assert "matrix.homeserver" in said
    assert "tries again" not in said, "it has ended, so it does not"


async def test_an_address_that_is_no_homeserver_is_named(make_musher: MusherMaker, model: ScriptedModel) -> None:
    said = await complaint(await make_musher(homeserver=model.url))
    assert "no Matrix homeserver" in said
    assert "matrix.homeserver" in said


async def test_a_wrong_password_is_told_without_showing_it(make_musher: MusherMaker) -> None:
    musher = await make_musher()
    musher.configure({"matrix": {"password": "not-my-password"}})
    said = await complaint(musher)
    assert musher.user_id in said
    assert "matrix.password" in said
    assert "not-my-password" not in said


async def test_an_access_token_that_is_not_valid_is_told_without_showing_it(
    make_musher: MusherMaker,
) -> None:
    musher = await make_musher()
    config = musher.config_file.read_text()
    token = '"access_token" = "not-a-token"\n"device_id" = "DEVICE"'
    lines = [token if line.startswith('"password"') else line for line in config.splitlines()]
    musher.config_file.write_text("\n".join(lines))
    said = await complaint(musher)
    assert "matrix.access_token" in said
    assert "not-a-token" not in said


async def test_an_unknown_model_is_told_with_those_that_there_are(make_musher: MusherMaker) -> None:
    said = await complaint_about(make_musher, {"llm": {"model": "no-such-model"}})
    assert "no-such-model" in said
    assert "Available: test-model" in said
    assert "llm.model" in said


async def test_a_data_folder_that_cannot_be_made_is_named(make_musher: MusherMaker, tmp_path: Path) -> None:
    file = tmp_path / "a-file"
    file.touch()
    said = await complaint_about(make_musher, {"store": {"path": str(file / "data" / "musher.db")}})
    assert str(file / "data" / "musher.db") in said
    assert "folder" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_data_folder_that_is_not_writable_is_named(make_musher: MusherMaker, tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    said = await complaint_about(make_musher, {"store": {"path": str(folder / "musher.db")}})
    assert str(folder / "musher.db") in said
    assert "writable" in said


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system on which nobody may make files")
async def test_a_data_folder_in_which_nobody_can_make_files_is_named(make_musher: MusherMaker) -> None:
    said = await complaint_about(make_musher, {"store": {"path": "/proc/self/musher.db"}})
    assert "/proc/self/musher.db" in said
    assert "store.path" in said


async def test_a_database_that_another_process_owns_is_told_with_its_owner(make_musher: MusherMaker) -> None:
    musher = await make_musher()
    async with Store.open(musher.database):
        said = await complaint(musher)
    assert str(musher.database) in said
    assert f"pid {os.getpid()}" in said


async def test_a_file_that_is_no_database_is_left_as_it_is(make_musher: MusherMaker) -> None:
    musher = await make_musher()
    musher.database.parent.mkdir()
    musher.database.write_text("shopping list: fish, harness, boots\n" * 400)
    said = await complaint(musher)
    assert str(musher.database) in said
    assert "not an SQLite database" in said
    assert musher.database.read_text().startswith("shopping list")


async def test_the_database_of_another_program_is_left_as_it_is(make_musher: MusherMaker) -> None:
    musher = await make_musher()
    musher.database.parent.mkdir()
    with sqlite3.connect(musher.database) as connection:
        connection.execute("CREATE TABLE dogs (name TEXT)")
    connection.close()
    before = musher.database.read_bytes()
    said = await complaint(musher)
    assert "another program's database" in said
    assert musher.database.read_bytes() == before


async def test_the_database_of_another_sled_is_told_with_both_names(make_musher: MusherMaker) -> None:
    musher = await make_musher({"sled": {"id": "build-2"}})
    async with Store.open(musher.database, sled_id="build-1"):
        pass
    said = await complaint(musher)
    assert "'build-1'" in said
    assert "'build-2'" in said
    assert "sled.id" in said


async def test_a_taken_ingest_port_is_told_with_its_key(make_musher: MusherMaker) -> None:
    port = free_port()
    with _taken(port):
        said = await complaint_about(make_musher, {"ingest": {"port": port}})
    assert f"127.0.0.1:{port}" in said
    assert "ingest.port" in said


@contextmanager
def _taken(port: int) -> Iterator[None]:
    with socket.socket() as taker:
        taker.bind(("127.0.0.1", port))
        taker.listen()
        yield
