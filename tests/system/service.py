"""Musher as people run it: `python -m bot run` in a process of its own, steered and judged from outside."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp

from tests.servers.synapse import PASSWORD

T = TypeVar("T")
Sections = Mapping[str, Mapping[str, object]]
"""A configuration, or the part of one that goes over the usual one: section -> key -> value."""

PATIENCE: Final = 30.0
"""Seconds to wait for something that should happen, before the test fails."""
STOP_WITHIN: Final = 10.0
"""Seconds that the service may take to end in order."""
INGEST_TOKEN: Final = "a-token-of-the-tests"
_WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_FIRST_PORT: Final = 10_000 + 1_000 * (_WORKER % 10)
_PORTS: Final = iter(random.sample(range(_FIRST_PORT, _FIRST_PORT + 1_000), 1_000))
"""Below the ports of outgoing connections, others for each worker, and none twice: nobody takes that of a service which
is down at the moment."""
_ROOT: Final = Path(__file__).parents[2]
_LOG_TAIL: Final = 60
_LONGEST_LINE: Final = 4 * 1024 * 1024
_BREATH: Final = 0.02


async def until(happened: Callable[[], Awaitable[T | None]], what: str, within: float = PATIENCE) -> T:
    """Ask until `happened` gives something other than `None`: for what another process does and nobody announces."""
    never = asyncio.Event()
    try:
        async with asyncio.timeout(within):
            while (found := await happened()) is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(never.wait(), _BREATH)
            return found
    except TimeoutError as error:
        raise TimeoutError(f"{what}: not within {within:g} s") from error


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("all ports were given out")


@dataclass(eq=False)
class MusherProcess:
    """One Musher with its folder, account, configuration and port, which outlive any number of starts and kills."""

    folder: Path
    homeserver: str
    user_id: str
    model_url: str
    sections: Sections = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    launch: Sequence[str] = ("-m", "bot")
    """What Python is to run: the service itself, or something that starts it."""
    logs: list[dict[str, Any]] = field(default_factory=list)
    """What all starts have logged; a line that is no JSON object stands as `{"line": …}`."""
    _process: asyncio.subprocess.Process | None = None
    _reading: asyncio.Task[None] | None = None
    _logged: asyncio.Condition = field(default_factory=asyncio.Condition)

    def __post_init__(self) -> None:
        (self.folder / "pauses").mkdir(parents=True, exist_ok=True)
        self.configure(self.sections)

    @property
    def pid(self) -> int:
        """The process id of the running service."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    @property
    def config_file(self) -> Path:
        return self.folder / "config.toml"

    @property
    def log_file(self) -> Path:
        return self.folder / "musher.log"

    @property
    def database(self) -> Path:
        return self.folder / "data" / "musher.db"

    def configure(self, sections: Sections) -> None:
        """Write the configuration for the next start: the usual one, `sections` over it; `None` takes a key out."""
        usual: dict[str, dict[str, object]] = {
            "matrix": {
                "homeserver": self.homeserver,
                "user_id": self.user_id,
                "password": PASSWORD,
                "allowed_users": ["@*:localhost"],
            },
            "store": {"path": str(self.database)},
            "llm": {"base_url": self.model_url, "model": "test-model", "context_tokens": 1_000_000},
            "ingest": {"port": self.port, "tokens": [INGEST_TOKEN]},
            "admin": {"port": 0},
        }
        for name, keys in sections.items():
            merged = {**usual.get(name, {}), **keys}
            usual[name] = {key: value for key, value in merged.items() if value is not None}
        self.config_file.write_text(toml(usual))

    async def start(self, *, pause_at: str | None = None, ready: bool = True) -> None:
        """Start the service, to pause at one point if asked, and wait until it is ready unless told not to."""
        assert self._process is None, "it runs already"
        pauses = {} if pause_at is None else {"MUSHER_PAUSE_AT": pause_at, "MUSHER_PAUSE_DIR": str(self._pauses)}
        self._process = await asyncio.create_subprocess_exec(
            *self._command("run"),
            cwd=self.folder,
            env=environment() | pauses,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LONGEST_LINE,
        )
        self._reading = asyncio.create_task(self._read(self._process))
        if ready:
            await self.wait_until_ready()

    async def wait_until_ready(self) -> None:
        """Wait until /readyz says so."""
        async with aiohttp.ClientSession() as http:

            async def is_ready() -> bool | None:
                if self._process is None or self._process.returncode is not None:
                    raise AssertionError(f"the service has ended while it was starting:\n{self.tail()}")
                with suppress(aiohttp.ClientConnectionError):
                    async with http.get(self._url("/readyz")) as response:
                        return True if response.status == 200 else None
                return None

            await until(is_ready, "the service is ready")

    async def wait_until_paused(self, point: str) -> None:
        """Wait until the running service stands at a pause point."""
        mark = self._pauses / point

        async def stands_there() -> bool | None:
            return True if mark.exists() else None

        await until(stands_there, f"the service reaches {point!r}")

    def resume(self, point: str) -> None:
        """Let the service, or the next start of it, go past a pause point."""
        (self._pauses / point).unlink()

    async def kill(self) -> None:
        """End the service as a power cut would."""
        process = self._take_process()
        with suppress(ProcessLookupError):
            process.kill()
        await self._ended(process)

    async def wait_until_ended(self) -> int:
        """Wait until the running service ends by itself; its exit code. `kill` then only clears up after it."""
        assert self._process is not None, "it does not run"
        return await self._process.wait()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """End the service in order; returns the seconds that it took, having made sure of the exit code 0."""
        process = self._take_process()
        began = asyncio.get_running_loop().time()
        process.send_signal(number)
        try:
            async with asyncio.timeout(STOP_WITHIN):
                await process.wait()
        except TimeoutError:
            process.kill()
            raise AssertionError(f"it did not end within {STOP_WITHIN:g} s of {number.name}") from None
        finally:
            await self._ended(process)
        assert process.returncode == 0, f"exit code {process.returncode}:\n{self.tail()}"
        return asyncio.get_running_loop().time() - began

    async def end(self) -> None:
        """Kill what still runs, and show the last log lines, which pytest prints if the test failed."""
        if self._process is not None:
            await self.kill()
        sys.stderr.write(f"--- the last lines of {self.user_id}'s log\n{self.tail()}\n")

    def tail(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.log_file.read_text().splitlines()[-_LOG_TAIL:]) if self.log_file.exists() else ""

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log lines so far that tell of `event`."""
        return [line for line in self.logs if line.get("event") == event]

    async def wait_for_log(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until `count` lines in all tell of `event`."""
        await self.wait_for_logs(lambda: len(self.logged(event)) >= count)
        return self.logged(event)

    async def wait_for_logs(self, condition: Callable[[], bool], within: float = PATIENCE) -> None:
        """Wait until a condition over the log lines holds."""
        async with asyncio.timeout(within), self._logged:
            await self._logged.wait_for(condition)

    async def post_events(self, *events: Mapping[str, str], within: float = PATIENCE) -> dict[str, Any]:
        """Post events as one request, and again until the service has taken them, as a sender would; the answer."""
        headers = {"Authorization": f"Bearer {INGEST_TOKEN}"}
        async with aiohttp.ClientSession(headers=headers) as http:

            async def taken() -> dict[str, Any] | None:
                with suppress(aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
                    async with http.post(self._url("/v1/events"), json=list(events)) as response:
                        answer: dict[str, Any] = await response.json()
                        assert response.status < 400 or response.status >= 500, answer
                        return answer if response.status < 300 else None
                return None

            return await until(taken, "the service takes the events", within)

    async def answers(self, method: str, path: str, body: object = None) -> int:
        """Ask the public listener once; the status of its answer."""
        headers = {"Authorization": f"Bearer {INGEST_TOKEN}"}
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.request(method, self._url(path), json=body) as response,
        ):
            return response.status

    async def command(self, *arguments: str) -> list[dict[str, Any]]:
        """Run another of Musher's commands with `--json` and return the objects that it prints."""
        process = await asyncio.create_subprocess_exec(
            *self._command(*arguments, "--json"),
            cwd=self.folder,
            env=environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, complaints = await process.communicate()
        assert process.returncode == 0, complaints.decode()
        return [json.loads(line) for line in output.splitlines()]

    @property
    def _pauses(self) -> Path:
        return self.folder / "pauses"

    def _command(self, name: str, *arguments: str) -> list[str]:
        return [sys.executable, *self.launch, name, *arguments, "--config", str(self.config_file)]

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def _take_process(self) -> asyncio.subprocess.Process:
        process, self._process = self._process, None
        assert process is not None, "it does not run"
        return process

    async def _ended(self, process: asyncio.subprocess.Process) -> None:
        await process.wait()
        if self._reading is not None:
            await self._reading

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        with self.log_file.open("ab") as file:
            async for raw in process.stdout:
                file.write(raw)
                file.flush()
                async with self._logged:
                    self.logs.append(_log_line(raw))
                    self._logged.notify_all()


def environment() -> dict[str, str]:
    """The environment of a Musher process: nothing in it configures it."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MUSHER_")}
    environ["PYTHONPATH"] = str(_ROOT)
    return environ


def toml(sections: Sections) -> str:
    """Write a configuration; below the sections all tables are inline."""
    return "\n".join(line for name, keys in sections.items() for line in _section(name, keys))


def _section(name: str, keys: Mapping[str, object]) -> Iterator[str]:
    yield f"[{name}]"
    yield from (f"{json.dumps(key)} = {_value(value)}" for key, value in keys.items())


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{json.dumps(key)} = {_value(inner)}" for key, inner in value.items())
        return f"{{ {pairs} }}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(_value(inner) for inner in value)}]"
    return json.dumps(value, ensure_ascii=False)


def _log_line(raw: bytes) -> dict[str, Any]:
    text = raw.decode(errors="replace").rstrip("\n")
    with suppress(ValueError):
        parsed = json.loads(text)
        if isinstance(parsed, dict):
            return parsed
    return {"line": text}
