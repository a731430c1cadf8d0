"""The image, the compose file and the systemd unit: what they promise, and a container's life without an engine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import yaml  # type: ignore[import-untyped]

from bot.config import load_config
from bot.demo.homeserver import Homeserver
from tests.image import (
    Image,
    Instruction,
    confine,
    confinement_problem,
    ignore_patterns,
    parse_dockerfile,
    reaches_build,
)
from tests.servers.synapse import PASSWORD, Person
from tests.system.service import free_port, until

ROOT: Final = Path(__file__).parents[1]
INSTRUCTIONS: Final = parse_dockerfile((ROOT / "Dockerfile").read_text())
LAST_STAGE: Final = INSTRUCTIONS[max(at for at, each in enumerate(INSTRUCTIONS) if each.name == "FROM") :]
IGNORED: Final = ignore_patterns((ROOT / ".dockerignore").read_text())
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED: Final = {each["name"]: each for each in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
COMPOSE: Final = yaml.safe_load((ROOT / "compose.yaml").read_text())
TOKEN: Final = "a-token-of-the-container"

needs_confinement: Final = pytest.mark.skipif(
    confinement_problem() is not None, reason=f"commands can't be confined: {confinement_problem()}"
)


def instructions(name: str, among: list[Instruction] = INSTRUCTIONS) -> list[Instruction]:
    return [each for each in among if each.name == name]


def last(name: str) -> Instruction:
    return instructions(name, LAST_STAGE)[-1]


def variables(of: list[Instruction]) -> dict[str, str]:
    return dict(word.split("=", 1) for each in instructions("ENV", of) for word in each.words)


# The Dockerfile as it is written


def test_every_copied_file_exists_and_reaches_the_build() -> None:
    copied = [source for each in instructions("COPY") if "from" not in each.flags for source in each.words[:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), f"COPY {source}: there is no such file"
        assert reaches_build(source, IGNORED), f"COPY {source}: .dockerignore holds it back"


@pytest.mark.parametrize(
    "path",
    [
        "config.toml",
        "secrets/matrix_password",
        ".env",
        ".git/config",
        ".demo/credentials",
        ".venv/bin/python",
        "data/musher.db",
        "tests/conftest.py",
        "bot/__pycache__/app.cpython-312.pyc",
    ],
)
def test_what_is_not_the_program_never_reaches_the_build(path: str) -> None:
    assert not reaches_build(path, IGNORED)


def test_the_container_is_a_user_without_a_name_who_writes_only_into_its_volume() -> None:
    assert last("USER").words == ["10001:10001"]
    assert last("VOLUME").words == ["/data"]
    assert variables(LAST_STAGE)["MUSHER_STORE__PATH"] == "/data/musher.db"
    owned = [each for each in instructions("COPY", LAST_STAGE) if each.words[-1] == "/data"]
    assert [each.flags["chown"] for each in owned] == ["10001:10001"]


def test_the_container_starts_the_service_and_ends_it_with_the_signal_that_it_knows() -> None:
    assert last("ENTRYPOINT").words == ["musher"]
    assert last("CMD").words == ["run"]
    assert last("STOPSIGNAL").words == ["SIGTERM"]
    assert variables(LAST_STAGE)["MUSHER_INGEST__HOST"] == "0.0.0.0"
    assert last("EXPOSE").words == [variables(LAST_STAGE)["MUSHER_INGEST__PORT"]]


def test_the_image_stands_on_a_python_that_the_project_supports() -> None:
    bases = {each.words[0] for each in instructions("FROM")}
    assert len(bases) == 1
    found = re.fullmatch(r"python:3\.(\d+)-slim-\w+", bases.pop())
    lowest = re.fullmatch(r">=3\.(\d+)", PROJECT["requires-python"])
    assert found is not None
    assert lowest is not None
    assert int(found[1]) >= int(lowest[1])


def test_the_image_is_built_with_the_uv_that_make_uses() -> None:
    made_with = re.search(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert made_with is not None
    assert any(f"uv=={made_with[1]}" in each.words for each in instructions("RUN"))


# The image as its steps make it


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image, built in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="musher-image-", dir=roomy_memory()) as folder:
        built = Image(context=ROOT, folder=Path(folder).resolve())
        built.build(INSTRUCTIONS)
        yield built


def roomy_memory() -> str | None:
    """Memory as a place for files, where there is plenty: on a disk, removing the image takes as long as its tests."""
    place = "/dev/shm"
    if not os.path.isdir(place):
        return None
    found = os.statvfs(place)
    fits = found.f_bavail * found.f_frsize > 4 * 1024**3 and not found.f_flag & os.ST_NOEXEC
    return place if fits and os.access(place, os.W_OK) else None


def output_of(image: Image, *command: str, environ: Mapping[str, str] | None = None) -> str:
    process = image.start(command, environ=environ)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output


def test_the_image_holds_the_locked_versions_and_neither_tools_nor_the_demo_server(image: Image) -> None:
    ask = "import json; from importlib.metadata import distributions as all; "
    ask += "print(json.dumps({each.name.lower(): each.version for each in all()}))"
    installed: dict[str, str] = json.loads(output_of(image, "python", "-c", ask))
    extras = {name for name in PROJECT["optional-dependencies"] if name != "demo"}
    assert {name: LOCKED[re.sub(r"[-_.]+", "-", name)]["version"] for name in installed} == installed
    assert not {"matrix-synapse", "pytest", "ruff", "mypy", "uv"} & set(installed)
    assert {"matrix-nio", "pycrdt", "aiosqlite", "structlog", *extras} <= set(installed)


def test_the_image_holds_the_program_itself_and_not_a_link_to_its_source(image: Image) -> None:
    where = Path(output_of(image, "python", "-c", "import bot.app, crdt; print(crdt.__file__)").strip())
    assert where.is_relative_to(image.inside("/opt/musher"))
    assert output_of(image, "musher", "--version") == f"musher {PROJECT['version']}\n"
    assert list(where.parent.glob("__pycache__/store.*.pyc")), "a read-only root can't keep byte code"


@needs_confinement
def test_the_images_commands_run_without_any_right(image: Image) -> None:
    ask = "import os; print(os.getuid(), open('/proc/self/status').read())"
    told = output_of(image, "python", "-c", ask)
    assert told.startswith("10001 ")
    assert re.search(r"^CapEff:\s*0+$", told, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s*1$", told, re.MULTILINE)


@asynccontextmanager
async def running(image: Image, environ: Mapping[str, str]) -> AsyncIterator[subprocess.Popen[str]]:
    """The container's own command, whose output is shown if the test fails."""
    process = image.start(
        [*image.config["ENTRYPOINT"].words, *image.config["CMD"].words], environ=environ, writable=["/data"]
    )
    try:
        yield process
    finally:
        process.kill()
        output, _ = await asyncio.to_thread(process.communicate)
        sys.stderr.write(f"--- what the container wrote\n{output}")


async def passes(image: Image, environ: Mapping[str, str]) -> bool | None:
    """Run the health check once, as an engine does."""
    health = image.config["HEALTHCHECK"].text
    command = json.loads(health[health.index("CMD") + 3 :])
    process = image.start(command, environ=environ)
    await asyncio.to_thread(process.communicate)
    return True if process.returncode == 0 else None


async def post(port: int, event: Mapping[str, str]) -> int:
    url, headers = f"http://127.0.0.1:{port}/v1/events", {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(headers=headers) as http, http.post(url, json=event) as response:
        return response.status


@pytest.fixture
async def settings(synapse: Homeserver, unique: Callable[[str], str], image: Image) -> dict[str, str]:
    """What an operator sets: everything in the environment, the secrets in files."""
    user_id = await synapse.register(unique("musher"), PASSWORD)
    secrets = image.folder / "run" / "secrets"
    secrets.mkdir(parents=True, exist_ok=True)
    (secrets / "matrix_password").write_text(PASSWORD + "\n")
    (secrets / "ingest_tokens").write_text(TOKEN + "\n")
    return {
        "MUSHER_MATRIX__HOMESERVER": synapse.url,
        "MUSHER_MATRIX__USER_ID": user_id,
        "MUSHER_MATRIX__PASSWORD_FILE": str(secrets / "matrix_password"),
        "MUSHER_MATRIX__ALLOWED_USERS": "@*:localhost",
        "MUSHER_LLM__PROVIDER": "digest",
        "MUSHER_INGEST__TOKENS_FILE": str(secrets / "ingest_tokens"),
        "MUSHER_INGEST__HOST": "127.0.0.1",
        "MUSHER_INGEST__PORT": str(free_port()),
        "MUSHER_ADMIN__PORT": "0",
    }


async def test_the_container_works_with_one_writable_folder_and_ends_in_order(
    image: Image,
    settings: dict[str, str],
    make_person: Callable[[str], Awaitable[Person]],
) -> None:
    alice = await make_person("alice")
    bot = settings["MUSHER_MATRIX__USER_ID"]
    before = files_outside_the_volume(image)
    async with running(image, settings) as process:
        await until(lambda: passes(image, settings), "the health check passes")
        event = {"story_id": "42", "from_stage": "2_current", "to_stage": "3_qa", "pipeline_event": "GatesStarted"}
        assert await post(int(settings["MUSHER_INGEST__PORT"]), event) == 202
        room = await alice.create_room(invite=[bot])
        await alice.wait_for_membership(room, bot)
        asked = await alice.say(room, "what happened?")
        reply = await alice.wait_for_reply(room, asked, bot)
        assert "42" in reply["content"]["body"]
        listed = output_of(image, "musher", "events", "--json", environ=settings)
        assert json.loads(listed)["story_id"] == "42"
        process.send_signal(getattr(signal, image.config["STOPSIGNAL"].text))
        assert await asyncio.to_thread(process.wait, 10) == 0
    assert files_outside_the_volume(image) == before
    kept = modes_in_the_volume(image)
    assert kept["musher.db"] == 0o600
    assert set(kept.values()) == {0o600}


def modes_in_the_volume(image: Image) -> dict[str, int]:
    found = Path(image.inside("/data")).glob("musher.db*")
    return {each.name: stat.S_IMODE(each.stat().st_mode) for each in found}


def files_outside_the_volume(image: Image) -> set[str]:
    volume = image.inside("/data")
    return {path for path in map(str, image.folder.rglob("*")) if not path.startswith(volume)}


async def test_the_health_check_fails_while_nothing_serves(image: Image) -> None:
    assert await passes(image, {"MUSHER_INGEST__PORT": str(free_port())}) is None


@needs_confinement
def test_a_container_without_a_writable_volume_says_so(image: Image, settings: dict[str, str]) -> None:
    process = image.start(["musher", "run"], environ=settings)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "musher.db" in output
    assert "Traceback" not in output


# The files that start it


def interpolated(value: object, environ: Mapping[str, str]) -> str:
    """Fill in `${NAME:-default}` as compose does, from the inside out."""
    text = str(value)
    while found := re.search(r"\$\{(\w+):-([^${}]*)\}", text):
        text = text.replace(found[0], environ.get(found[1]) or found[2])
    assert "${" not in text, text
    return text


def compose_environment(service: str, **environ: str) -> dict[str, str]:
    return {name: interpolated(value, environ) for name, value in COMPOSE["services"][service]["environment"].items()}


def with_secrets_from(folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The same settings with the mounted secrets where they lie on this machine."""
    (folder / "secrets").mkdir(exist_ok=True)
    for secret in COMPOSE["secrets"].values():
        (folder / secret["file"]).write_text("something-secret\n")
    return {name: value.replace("/run/secrets", str(folder / "secrets")) for name, value in environ.items()}


def test_what_compose_sets_is_a_whole_configuration(tmp_path: Path) -> None:
    config = load_config(None, with_secrets_from(tmp_path, compose_environment("musher")))
    assert (config.matrix.user_id, config.llm.provider) == ("@musher:localhost", "digest")
    assert config.matrix.allows("@alice:localhost")
    assert [token.get_secret_value() for token in config.ingest.tokens] == ["something-secret"]


def test_compose_takes_a_server_name_and_a_model_from_the_environment(tmp_path: Path) -> None:
    environ = compose_environment(
        "musher", SERVER_NAME="example.org", MUSHER_LLM__PROVIDER="openai", MUSHER_LLM__MODEL="llama3.2"
    )
    config = load_config(None, with_secrets_from(tmp_path, environ))
    assert config.matrix.allowed_users == ("@*:example.org",)
    assert (config.llm.base_url, config.llm.model) == ("http://ollama:11434/v1", "llama3.2")


def test_compose_names_only_what_it_defines() -> None:
    services: dict[str, dict[str, Any]] = COMPOSE["services"]
    for name, service in services.items():
        for secret in service.get("secrets", ()):
            assert secret in COMPOSE["secrets"], name
        for volume in service.get("volumes", ()):
            assert volume.split(":")[0] in COMPOSE["volumes"], name
        assert set(service.get("depends_on", ())) <= set(services), name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} is open to other machines"


def test_compose_starts_musher_with_no_more_rights_than_it_needs() -> None:
    musher = COMPOSE["services"]["musher"]
    assert musher["read_only"] is True
    assert musher["cap_drop"] == ["ALL"]
    assert f"musher:{last('VOLUME').words[0]}" in musher["volumes"]


def test_compose_starts_the_homeserver_that_the_tests_run_against() -> None:
    assert COMPOSE["services"]["synapse"]["image"] == f"matrixdotorg/synapse:v{LOCKED['matrix-synapse']['version']}"


def test_secrets_and_settings_stay_out_of_git() -> None:
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {"config.toml", "data/", ".env", "secrets/"} <= set(ignored)


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    installed = tmp_path / "musher.service"
    text = (ROOT / "deploy" / "musher.service").read_text()
    installed.write_text(text.replace("/opt/musher/bin/musher", "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(installed)],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in verified.stderr.splitlines() if "musher.service" in line]
    assert not complaints, complaints
    assert verified.returncode == 0, verified.stderr


def test_the_unit_starts_the_service_as_the_documents_install_it() -> None:
    unit = (ROOT / "deploy" / "musher.service").read_text()
    command = re.search(r"^ExecStart=(.+)$", unit, re.MULTILINE)
    assert command is not None
    assert command[1] == "/opt/musher/bin/musher run --config /etc/musher/config.toml"
    for name in re.findall(r"^Environment=(MUSHER_\w+)=", unit, re.MULTILINE):
        assert name in {"MUSHER_STORE__PATH", "MUSHER_MATRIX__PASSWORD_FILE", "MUSHER_INGEST__TOKENS_FILE"}


def test_a_confined_command_can_be_stopped_like_any_other(tmp_path: Path) -> None:
    if (problem := confinement_problem()) is not None:
        pytest.skip(problem)
    argv, environ = confine(["sleep", "60"], [tmp_path])
    process = subprocess.Popen(argv, env=os.environ | environ)
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM
