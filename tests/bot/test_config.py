from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from bot.config import Config, load_config, load_store_config
from bot.config.schema import is_list, is_named_tables, keys_of, table_of
from bot.errors import ConfigError
from tests.bot.config.minimal import MINIMAL, insert, load, only_problem, problems

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"


def test_a_minimal_file_gives_all_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL)
    assert config.matrix.homeserver == "http://127.0.0.1:8008"
    assert config.matrix.password is not None
    assert config.matrix.password.get_secret_value() == "hunter2"
    assert config.matrix.answer_backlog == timedelta(hours=24)
    assert (config.matrix.respond_to, config.matrix.max_parallel_rooms) == ("all", 8)
    assert config.store.path == Path("data/musher.db")
    assert (config.store.segment_events, config.store.retention_events, config.store.retention_days) == (
        4_000,
        1_000_000,
        90,
    )
    assert (config.llm.timeout, config.llm.max_reply_tokens) == (timedelta(seconds=120), 1024)
    assert config.personas == {}
    assert (config.ingest.port, config.admin.port, config.log.format) == (8080, 9090, "json")


def test_a_loaded_config_can_not_be_changed_and_never_shows_a_secret(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL + '[ingest]\ntokens = ["hunter2"]\n')
    with pytest.raises(ValidationError, match="frozen"):
        config.log.level = "debug"
    assert "hunter2" not in repr(config)


def test_all_problems_are_told_at_once_without_any_secret(tmp_path: Path) -> None:
    text = """
    [matrix]
    homeserver = "https://bot:hunter2@example.org"
    user_id = "musher"
    pasword = "hunter2"
    allowed_users = []
    answer_backlog = "24"
    [llm]
    provider = "magic"
    api_key = "hunter2 hunter2"
    [rooms."#alias:example.org"]
    [rooms."!a"]
    persona = "nobody"
    [ingest]
    port = 70000
    """
    told = problems(tmp_path, text)
    keys = [re.split(r"[ :]", problem.replace("#alias:", "#alias"))[0] for problem in told]
    assert sorted(keys) == sorted(
        [
            "matrix.homeserver",
            "matrix.user_id",
            "matrix.password",
            "matrix.pasword",
            "matrix.allowed_users",
            "matrix.answer_backlog",
            "llm.provider",
            "llm.api_key",
            'rooms."#aliasexample.org"',
            'rooms."!a".persona',
            "ingest.port",
        ]
    )
    assert all("allowed: " in problem for problem in told)
    assert any("llm.api_key = (hidden):" in problem for problem in told)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[matrix]\nhomserver = "x"', "matrix.homserver: unknown key; did you mean homeserver?"),
        ('[matrx]\nhomeserver = "x"', "matrx: unknown key; did you mean matrix?"),
        (
            "[log]\nlevel = 'verbose'",
            'log.level = "verbose": is none of the known words; allowed: debug, info, warning',
        ),
        ("[store]\nsegment_events = 0", "store.segment_events = 0: is out of range; allowed: a whole number from 1"),
        ("[ingest]\nport = true", "ingest.port = true: is not a number"),
        ("[ingest]\nport = 'http'", 'ingest.port = "http": is not a whole number'),
        ("[ingest]\ntokens = 'hunter2'", "ingest.tokens = (hidden): is not a list"),
        ("[ingest]\ntokens = ['hunter2 ']", "ingest.tokens[0] = (hidden): is empty, or has spaces"),
        ("[ingest]\nport = 9090", "admin.port: 9090 is ingest.port as well"),
        ("log = 'hunter2'", "log: is not a table"),
        ("[sled]\nid = 'my sled'", 'sled.id = "my sled": is not 1-100 visible characters'),
        ("[personas.terse]", "personas.terse.instructions: is missing"),
        ("[rooms.'!a']\npersona = 'x'", 'rooms."!a".persona: "x" is not a persona (there are: default)'),
        ("[rooms.'!a']\nfilter = 'story_id =='", 'rooms."!a".filter = "story_id ==": is not JMESPath: '),
        ("[rooms.'!a']\nfilter = 'foo(@)'", "calls foo(), which JMESPath does not have"),
        ("[rooms.'!a b']", 'rooms."!a b": is not a room id'),
    ],
)
def test_a_wrong_value_is_named_with_what_is_wrong_and_what_is_allowed(tmp_path: Path, text: str, said: str) -> None:
    assert said in only_problem(tmp_path, f"{text}\n{MINIMAL}" if "\n" not in text else insert(text))


ENOUGH = {
    "MUSHER_MATRIX__HOMESERVER": "https://example.org",
    "MUSHER_MATRIX__USER_ID": "@musher:example.org",
    "MUSHER_MATRIX__PASSWORD": "hunter2",
    "MUSHER_MATRIX__ALLOWED_USERS": "@*:example.org",
    "MUSHER_LLM__PROVIDER": "digest",
}


def test_the_environment_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(None, ENOUGH).matrix.user_id == "@musher:example.org"


@pytest.mark.parametrize(
    ("path", "environ"), [(None, {}), (None, {"MUSHER_LOG__LEVEL": "debug"}), (Path("config.toml"), ENOUGH)]
)
def test_a_missing_file_says_what_to_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path | None, environ: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"config\.toml: no such file; copy config\.example\.toml to config\.toml"):
        load_config(path, environ)


def test_a_file_that_can_not_be_looked_at_is_not_taken_for_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").symlink_to("d" * 256)
    with pytest.raises(ConfigError, match=r"config\.toml: can't be read"):
        load_config(None, ENOUGH)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[matrix]\nx =\n", "at line 2, column 4"),
        (b'x = "\xff"', "is not UTF-8 text"),
        (b"x = " + b"1" * 5_000, "is not TOML: Exceeds the limit"),
        (b"x = " + b"[" * 5_000, "nested too deep"),
        (None, "can't be read"),
    ],
)
def test_a_file_that_is_no_toml_is_named_with_the_line(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "my.toml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"my\.toml: .*{said}"):
        load_config(path, {})


def test_looking_into_the_store_needs_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[matrix]\npassword_file = "gone"\n[store]\npath = "x.db"\n')
    assert load_store_config(path, {}).path == Path("x.db")
    assert load_store_config(path, {"MUSHER_STORE__PATH": "y.db"}).path == Path("y.db")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with open(tmp_path / "pipe", "w") as writer:
        writer.write("hunter2")
    assert load_store_config(path, {"MUSHER_MATRIX__PASSWORD_FILE": str(tmp_path / "pipe")}).path == Path("x.db")
    assert os.read(reader, 100) == b"hunter2", "a pipe gives its secret once, to the service"
    os.close(reader)
    with pytest.raises(ConfigError, match=r"store\.segment_events .*MUSHER_STORE__SEGMENT_EVENTS.* = \"x\": is not a"):
        load_store_config(path, {"MUSHER_STORE__SEGMENT_EVENTS": "x"})


@pytest.mark.parametrize(
    ("text", "environ", "said"),
    [
        ("", {"MUSHER_STORE__PAHT": "/x"}, r"MUSHER_STORE__PAHT: unknown key; did you mean path\?"),
        ("", {"MUSHER_STORE": '{"path":'}, "MUSHER_STORE: is not JSON"),
        ('[stroe]\npath = "x.db"', {}, r"stroe: unknown key; did you mean store\?"),
    ],
)
def test_looking_into_the_store_never_falls_back_on_the_default_for_a_mistake(
    tmp_path: Path, text: str, environ: dict[str, str], said: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_store_config(path, environ)


def example(*, files: bool) -> str:
    """The example with every commented-out key set and every empty value filled in."""
    lines = []
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        bare = re.sub(r"^# (?=\[|[a-z_]+ = )", "", line)
        if files or not re.match(r"[a-z_]+_file = |access_token|device_id", bare):
            lines.append(bare.replace('""', '"filled"'))
    return "\n".join(lines)


def test_the_example_is_valid_once_its_blanks_are_filled(tmp_path: Path) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert [problem.split()[0] for problem in problems(tmp_path, text)] == ["matrix.password", "llm.model"]
    load(tmp_path, text.replace('""', '"filled"'))


def test_the_example_shows_the_defaults(tmp_path: Path) -> None:
    shown = load(tmp_path, example(files=False)).model_dump()
    default = load(tmp_path, EXAMPLE.read_text(encoding="utf-8").replace('""', '"filled"')).model_dump()
    differing = {
        f"{section}.{key}"
        for section in ("matrix", "store", "sled", "llm", "ingest", "admin", "log")
        for key, value in default[section].items()
        if shown[section][key] != value
    }
    # These have no default that could be shown.
    assert differing == {"matrix.pickle_key", "sled.id", "llm.api_key", "llm.temperature", "ingest.sources"}


def missing_keys(model: type[BaseModel], table: Mapping[str, Any], place: str) -> Iterator[str]:
    yield from (f"{place}.{key}" for key in keys_of(model) if key not in table)
    for name, field in model.model_fields.items():
        inner = table_of(field)
        if inner is not None and name in table:
            below = table[name]
            below = next(iter(below.values())) if is_named_tables(field) else below[0] if is_list(field) else below
            yield from missing_keys(inner, below, f"{place}.{name}")


def test_the_example_mentions_every_key() -> None:
    assert list(missing_keys(Config, tomllib.loads(example(files=True)), "")) == []
