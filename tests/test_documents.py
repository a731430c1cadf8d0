"""The documents say what is so: their commands run, their links lead somewhere, and nothing is left out of them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest
import yaml  # type: ignore[import-untyped]

from bot.cli import _parser
from bot.config import load_config
from bot.demo.homeserver import Homeserver
from bot.pause import POINTS
from tests import reference
from tests.servers.synapse import PASSWORD, Person
from tests.system.service import environment, free_port

ROOT: Final = Path(__file__).parents[1]
DOCUMENTS: Final = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
NAMES: Final = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
COMPOSE: Final = yaml.safe_load((ROOT / "compose.yaml").read_text())
each_document: Final = pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)

_BLOCK: Final = re.compile(
    r"^(?P<indent> *)(?:<!-- test: (?P<mark>[^>]+) -->\n *)?```(?P<language>\w*)\n(?P<text>.*?)\n *```$",
    re.MULTILINE | re.DOTALL,
)
_INDENTED: Final = re.compile(r"(?:^ {4,}\S.*\n?)+", re.MULTILINE)
_INLINE: Final = re.compile(r"`((?:make|musher|\.venv/bin/musher) [^`…]+)`")
_LINK: Final = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_PATH: Final = re.compile(r"`((?:bot|crdt|tests|docs|deploy|benchmarks)/[\w./-]*)`")
_MACHINE_PATH: Final = re.compile(r"(?<![\w.])/(?:root|work|home|Users|tmp)\b|\.pyenv|site-packages")
_REGISTRY_HOST: Final = re.compile(r"\b(?:pypi|pythonhosted|npmjs|crates)\.(?:org|com|io)\b")
_ON_A_REAL_MACHINE: Final = {"install", "journalctl", "systemctl"}
"""Programs of the operating system, whose effects a test can't undo."""
_RUN_ELSEWHERE: Final = {".uv/bin/uv", "python3"}
"""tests/test_container.py runs these with the same arguments."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, with the mark that stands before it: `<!-- test: run -->`."""

    mark: str
    language: str
    text: str


def blocks(document: Path) -> list[Block]:
    found = []
    for match in _BLOCK.finditer(document.read_text()):
        lines = [line.removeprefix(match["indent"]) for line in match["text"].split("\n")]
        found.append(Block((match["mark"] or "").strip(), match["language"], "\n".join(lines)))
    return found


def commands(document: Path) -> Iterator[str]:
    """Every command line that a document shows in a block, those that end in a backslash joined."""
    text = document.read_text()
    shown = [block.text for block in blocks(document) if block.language == "sh"]
    outside = _BLOCK.sub("", text)
    shown += _INLINE.findall(outside)
    shown += [found[0] for found in _INDENTED.finditer(outside) if re.match(r"\s+(?:[A-Z_]+=|make|\.venv/)", found[0])]
    for each in shown:
        for line in re.sub(r"\\\n\s*", " ", each).splitlines():
            if line.strip() and not line.strip().startswith("#"):
                yield line.strip()


def words_of(command: str) -> list[str]:
    """The words of a command, without variables and `sudo` before it."""
    words = shlex.split(command.partition(" && ")[0], comments=True)
    while words and (words[0] in ("sudo", "env") or re.fullmatch(r"\w+=.*", words[0])):
        words = words[1:]
    return words


# What they say


@each_document
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for target in _LINK.findall(document.read_text()):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), f"{target}: there is no such file"
        if anchor:
            assert anchor in anchors(linked), f"{target}: there is no such heading"


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_every_path_of_the_repository_exists(document: Path) -> None:
    for path in _PATH.findall(document.read_text()):
        assert (ROOT / path).exists(), f"`{path}`: there is no such file"


@each_document
def test_no_document_names_a_machine_or_a_package_registry(document: Path) -> None:
    text = document.read_text()
    assert not _MACHINE_PATH.findall(text)
    assert not _REGISTRY_HOST.findall(text)


def test_the_front_page_of_the_documents_names_them_all() -> None:
    linked = {target for target in _LINK.findall((ROOT / "docs" / "README.md").read_text()) if "/" not in target}
    there = {path.name for path in ROOT.glob("docs/*.md")} - {"README.md"}
    assert linked == there, f"docs/README.md has to link {there - linked or linked - there}"


@pytest.mark.parametrize("name", reference.TABLES)
def test_the_tables_say_what_the_program_says(name: str) -> None:
    document, content = reference.TABLES[name]
    text = (ROOT / "docs" / document).read_text()
    assert text == reference.written(name, text, content()), "run: python -m tests.reference"


def test_every_pause_point_is_in_the_table() -> None:
    assert re.findall(r"^- `(\w+)`:", reference.pause_points(), re.MULTILINE) == list(POINTS)


def test_every_example_of_an_answer_is_what_the_service_answers() -> None:
    shown = [json.loads(block.text) for block in blocks(ROOT / "docs" / "http.md") if block.language == "json"]
    assert [set(each) for each in shown] == [
        {"accepted", "duplicates", "ignored", "first_seq", "last_seq"},
        {"error"},
    ]
    assert set(shown[1]["error"]) == {"code", "message", "field"}
    assert f"`{shown[1]['error']['code']}`" in reference.error_codes()


def test_every_recipe_for_a_model_is_a_configuration(tmp_path: Path) -> None:
    recipes = [block.text for block in blocks(ROOT / "docs" / "models.md") if block.language == "toml"]
    assert len(recipes) == 7
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "llm-key").write_text("something-secret\n")
    config = tmp_path / "config.toml"
    for recipe in recipes:
        config.write_text(f'{recipe}\n[matrix]\nhomeserver = "http://h"\nuser_id = "@m:h"\npassword = "p"\n')
        with config.open("a") as file:
            file.write('allowed_users = ["@*:h"]\n')
        assert load_config(config, {}).llm.model == tomllib.loads(recipe)["llm"]["model"]


# What they tell people to type


@each_document
def test_every_command_is_one_that_there_is(document: Path) -> None:
    for command in commands(document):
        words = words_of(command)
        if not words or command.startswith(("umask", "export", "mkdir", "printf", "chmod", "curl")):
            continue  # plain shell, in blocks that are run below
        check(words, command)


def check(words: list[str], command: str) -> None:
    program = words[0]
    if program in (".venv/bin/musher", "/opt/musher/bin/musher", "musher"):
        named = {path for path, _ in reference.leaves(_parser(), ())}
        if tuple(words[1:]) not in named:  # the name alone, where a text speaks of it
            _parser().parse_args(words[1:])
    elif program == "make":
        targets = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets), command
    elif program == "docker":
        check_docker(words[1:], command)
    elif program == ".venv/bin/pytest":
        assert (ROOT / words[1]).exists(), command
    elif program == ".venv/bin/python":
        assert words[1:] == ["-m", words[2]], command
        assert find_spec(words[2]) is not None, command
    else:
        assert program in _ON_A_REAL_MACHINE | _RUN_ELSEWHERE | {"rm", "cp", "chown"}, command
        for word in words[1:]:
            if word.startswith("deploy/"):
                assert (ROOT / word).exists(), command


def check_docker(words: list[str], command: str) -> None:
    if words[0] != "compose":
        assert words == ["build", "-t", COMPOSE["services"]["musher"]["image"], "."], command
        return
    options = ("--rm", "-d", "-f", "-T", "--no-deps", "--entrypoint=tee", "--entrypoint=rm")
    match [word for word in words[1:] if word not in options]:
        case ["--profile", profile, "up", service]:
            assert profile in COMPOSE["services"][service]["profiles"], command
        case ["exec", "musher", "musher", *arguments]:
            _parser().parse_args(arguments)
        case ["run" | "exec" | "up" | "logs" | "start" | "stop", service, *_]:
            assert service in COMPOSE["services"], command
        case ["cp", source, _]:
            assert source.split(":")[0] in COMPOSE["services"], command
        case other:
            assert other == ["up"], command


def test_the_documents_install_what_the_image_installs() -> None:
    image = (ROOT / "Dockerfile").read_text()
    installs = [line for line in commands(ROOT / "docs" / "running.md") if "uv" in line.split("=")[0] or "sync" in line]
    flags = re.findall(r"RUN uv sync (.+)$", image, re.MULTILINE)[-1]
    assert any(line.endswith(f".uv/bin/uv sync {flags}") for line in installs), installs
    version = re.search(r"uv==\S+", image)
    assert version is not None
    assert any(version[0] in line for line in installs), installs


# What happens when people do


class Reader:
    """Somebody who does what a document says, in a folder of their own, with their own names for things."""

    def __init__(self, folder: Path, names: Mapping[str, str], port: int) -> None:
        self.folder = folder
        self._names = names
        self._environ = environment() | {"MUSHER_INGEST__PORT": str(port), "MUSHER_ADMIN__PORT": "0"}
        programs = [str(Path(sys.executable).parent), os.environ["PATH"]]
        self._environ["PATH"] = os.pathsep.join(programs)

    def adapt(self, text: str) -> str:
        """Put the reader's own names into a text."""
        for shown, own in self._names.items():
            text = text.replace(shown, own)
        return text

    async def start(self, command: str, **environ: str) -> asyncio.subprocess.Process:
        """Start what a block says, in a shell that gives way to its last command."""
        return await asyncio.create_subprocess_exec(
            *("sh", "-e", "-c", self.adapt(command)),
            cwd=self.folder,
            env=self._environ | environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )

    async def run(self, command: str) -> str:
        """Do what a block says, to its end."""
        process = await self.start(command)
        output, _ = await process.communicate()
        assert process.returncode == 0, f"{command}\n{output.decode()}"
        return output.decode()

    @asynccontextmanager
    async def serving(self, command: str, **environ: str) -> AsyncIterator[None]:
        """Keep the service running meanwhile, from its `ready` to its end in order."""
        process = await self.start(f"exec {command}", **environ)
        lines: list[str] = []
        ready = asyncio.Event()

        async def read() -> None:
            assert process.stdout is not None
            async for line in process.stdout:
                lines.append(line.decode())
                if '"event": "ready"' in lines[-1]:
                    ready.set()
            ready.set()

        reading = asyncio.create_task(read())
        try:
            async with asyncio.timeout(30):
                await ready.wait()
            assert process.returncode is None, "".join(lines)
            yield
            process.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(process.wait(), 15) == 0
        finally:
            if process.returncode is None:
                process.kill()
            await reading
            sys.stderr.write("".join(lines[-40:]))


def marked(document: str, mark: str) -> list[Block]:
    return [block for block in blocks(ROOT / "docs" / document) if block.mark == mark]


@pytest.fixture
async def reader(synapse: Homeserver, unique: Callable[[str], str], tmp_path: Path) -> Reader:
    user_id = await synapse.register(unique("musher"), PASSWORD)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    port = free_port()
    names = {
        "https://matrix.example.org": synapse.url,
        "@musher:example.org": user_id,
        "@*:example.org": "@*:localhost",
        "127.0.0.1:8080": f"127.0.0.1:{port}",
        "/var/lib/musher": str(tmp_path / "data"),
        "/opt/musher/bin/": ".venv/bin/",
        "/etc/musher/": "",
        "sudo ": "",
    }
    return Reader(tmp_path, names, port)


async def answer(reader: Reader, alice: Person, room: str, question: str) -> str:
    asked = await alice.say(room, question)
    reply = await alice.wait_for_reply(room, asked, reader.adapt("@musher:example.org"))
    return str(reply["content"]["body"])


async def test_the_quickstart_leads_to_an_answer_and_the_backup_comes_back(
    reader: Reader, make_person: Callable[[str], Awaitable[Person]]
) -> None:
    alice = await make_person("alice")
    bot = reader.adapt("@musher:example.org")
    secrets, check_it, post, look = marked("quickstart.md", "run")
    (config,) = marked("quickstart.md", "file config.toml")
    (serve,) = marked("quickstart.md", "serve")
    (backup,) = [block for block in marked("running.md", "run") if "db backup" in block.text]
    (restore,) = marked("running.md", "restore")

    await reader.run(secrets.text)
    (reader.folder / "config.toml").write_text(reader.adapt(config.text))
    assert "the configuration is valid" in await reader.run(check_it.text)
    async with reader.serving(serve.text):
        await reader.run(post.text)
        room = await alice.create_room(invite=[bot])
        await alice.wait_for_membership(room, bot)
        assert "42" in await answer(reader, alice, room, "what happened?")
        assert "GatesStarted" in (looked := await reader.run(look.text))
        assert room in looked
        await reader.run(backup.text)
        await reader.run(post.text)
        if shutil.which("curl"):
            for curl in marked("http.md", "run"):
                assert '"accepted": 1' in await reader.run(curl.text)
                assert '"duplicates": 1' in await reader.run(curl.text)
        assert "42" in await answer(reader, alice, room, "and now?")
    await reader.run(restore.text)
    async with reader.serving(serve.text):
        assert (await reader.run(look.text)).count("GatesStarted") == 1
        assert await answer(reader, alice, room, "are you back?")
    replies = await alice.said(room, bot)
    assert len(replies) == 3, "what was answered before the copy came back is not answered again"


async def test_the_secrets_of_the_compose_file_are_made_as_it_expects_them(reader: Reader) -> None:
    (make_secrets,) = [block for block in marked("running.md", "run") if "mkdir" in block.text]
    await reader.run(make_secrets.text)
    expected = {str(each["file"]) for each in COMPOSE["secrets"].values()}
    assert {f"./{path.relative_to(reader.folder)}" for path in reader.folder.glob("secrets/*")} == expected
    modes = {path.stat().st_mode & 0o777 for path in reader.folder.glob("secrets/*")}
    assert modes == {0o644}
    assert (reader.folder / "secrets").stat().st_mode & 0o777 == 0o700


def test_the_account_commands_are_ones_that_the_homeserver_has() -> None:
    from synapse._scripts import register_new_matrix_user

    source = Path(register_new_matrix_user.__file__).read_text()
    lines = [line for line in commands(ROOT / "docs" / "running.md") if "register_new_matrix_user" in line]
    assert lines
    for line in lines:
        for option in re.findall(r" (--?[a-z-]+)", line.split("register_new_matrix_user")[1]):
            assert f'"{option}"' in source, line
