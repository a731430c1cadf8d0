from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bot import reading
from bot.config import load_config
from bot.errors import ConfigError
from tests.bot.config.minimal import MINIMAL, insert, load, only_problem


def test_secrets_come_from_files_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2 with spaces \n")
    (tmp_path / "tokens").write_text("one\n\n  two\r\n")
    (tmp_path / "gh").write_text("s1\ns2\n")
    text = MINIMAL.replace('password = "hunter2"', 'password_file = "password"')
    text += '[ingest]\ntokens_file = "tokens"\n'
    text += '[[ingest.sources]]\nname = "gh"\nkind = "github"\nsecrets_file = "gh"\n'
    config = load(tmp_path, text)
    assert config.matrix.password is not None
    assert config.matrix.password.get_secret_value() == "hunter2 with spaces "
    assert [token.get_secret_value() for token in config.ingest.tokens] == ["one", "two"]
    assert [secret.get_secret_value() for secret in config.ingest.sources[0].secrets] == ["s1", "s2"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "can't be read (No such file or directory); allowed: a file that holds the secret"),
        (b"\n", "is an empty file"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_a_secret_file_that_gives_no_secret_is_named_once(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "password").write_bytes(content)
    text = MINIMAL.replace('password = "hunter2"', 'password_file = "password"')
    assert only_problem(tmp_path, text).startswith(f'matrix.password_file = "password": {said}')


def test_files_without_an_end_are_refused(tmp_path: Path) -> None:
    text = MINIMAL.replace('password = "hunter2"', 'password_file = "/dev/zero"')
    assert "can't be read (is larger than 16 MiB)" in only_problem(tmp_path, text)
    with pytest.raises(ConfigError, match=r"can't be read \(is larger than 16 MiB\)"):
        load_config(Path("/dev/zero"), {})


def test_a_pipe_gives_what_is_written_into_it_and_its_silence_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    text = MINIMAL.replace('password = "hunter2"', 'password_file = "pipe"')
    with ThreadPoolExecutor() as threads:
        threads.submit((tmp_path / "pipe").write_text, "hunter2\n")
        config = load(tmp_path, text)
    assert config.matrix.password is not None
    assert config.matrix.password.get_secret_value() == "hunter2"
    monkeypatch.setattr(reading, "SILENCE_S", 0.0)
    held_open = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    (tmp_path / "pipe").write_text("hunter2\n")  # its writer is gone when we come
    load(tmp_path, text)
    os.close(held_open)
    assert "can't be read (nobody wrote into it for 0 s)" in only_problem(tmp_path, text)


def test_a_secret_given_twice_is_refused(tmp_path: Path) -> None:
    said = "matrix.password: is given as password and as password_file"
    assert said in only_problem(tmp_path, insert('[matrix]\npassword_file = "p"'))
    assert said in only_problem(tmp_path, MINIMAL, {"MUSHER_MATRIX__PASSWORD_FILE": "p"})


def test_a_byte_order_mark_is_part_of_no_key_and_no_secret(tmp_path: Path) -> None:
    """Editors on Windows begin files with one."""
    (tmp_path / "password").write_text("hunter2", encoding="utf-8-sig")
    config = load(tmp_path, "\ufeff" + MINIMAL.replace('password = "hunter2"', 'password_file = "password"'))
    assert config.matrix.password is not None
    assert config.matrix.password.get_secret_value() == "hunter2"
