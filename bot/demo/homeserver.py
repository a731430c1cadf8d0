"""A real homeserver (Synapse) as a child process on loopback, for the demo and for the tests."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import importlib.util
import os
import random
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import aiohttp
import structlog

from bot.demo.synapse_folder import HomeserverFailed, Identity, SynapseFolder, new_identity

__all__ = ["Credentials", "Homeserver", "HomeserverFailed"]

log = structlog.get_logger(__name__)

HOST = "127.0.0.1"
READY_WITHIN = 60.0
"""Seconds. Measured: 2-5 s; the first start on a slow machine also compiles Synapse's modules."""
STOP_WITHIN = 5.0
"""Seconds between SIGTERM and SIGKILL; Musher itself has 10 s to end."""
POLL_EVERY = 0.1
PORTS = range(20_000, 30_000)
"""Below the ports that Linux gives to outgoing connections (32768-60999), so that nobody's connection can sit on the
port while Synapse restarts."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a logged-in device of a user presents to the homeserver."""

    user_id: str
    device_id: str
    access_token: str = field(repr=False)


class Homeserver:
    """A Synapse that lives no longer than the `async with Homeserver.start(folder)` block, nor than this process.

    `stop`, `kill` and `restart` belong to the event loop that started it, and the thread that started it must live on:
    the kernel ends Synapse with that thread. `register` and `login` work from any loop.
    """

    def __init__(self, folder: SynapseFolder, identity: Identity, in_memory: bool, ready_within: float) -> None:
        self._folder = folder
        self._identity = identity
        self._in_memory = in_memory
        self._ready_within = ready_within
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        folder: Path | str,
        port: int | None = None,
        *,
        server_name: str = "localhost",
        in_memory: bool = False,
        ready_within: float = READY_WITHIN,
    ) -> AsyncIterator[Self]:
        """Start Synapse in `folder` and wait until it answers.

        A folder that was used before keeps its server name, whatever `server_name` says, and its port, while that is
        free and no other (not 0) is asked for. `in_memory` keeps the database in memory: gone with the process.
        `ready_within` is in seconds. Raises `HomeserverFailed`.
        """
        if importlib.util.find_spec("synapse") is None:
            raise HomeserverFailed(
                "the embedded homeserver needs Synapse, which is not installed: "
                "install the extra `demo` with 'uv sync --all-extras'"
            )
        files = SynapseFolder.at(folder)
        with files.owned():
            homeserver = cls(files, _settle_identity(files, port, server_name), in_memory, ready_within)
            try:
                await homeserver._launch()
                yield homeserver
            finally:
                await homeserver.stop()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._identity.port}"

    @property
    def port(self) -> int:
        return self._identity.port

    @property
    def server_name(self) -> str:
        return self._identity.server_name

    @property
    def folder(self) -> Path:
        return self._folder.path

    @property
    def log_file(self) -> Path:
        return self._folder.log_file

    @property
    def pid(self) -> int | None:
        """The process id of Synapse, or None while it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def stop(self) -> None:
        """End Synapse in good order (SIGTERM, after 5 s SIGKILL) and wait until it is gone. Repeated: does nothing."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):  # it has just died by itself
            process.terminate()
        try:
            async with asyncio.timeout(STOP_WITHIN):
                await process.wait()
        except TimeoutError:
            log.warning("homeserver_slow_to_stop", url=self.url, seconds=STOP_WITHIN)
        finally:
            await self.kill()  # also when this wait was cancelled
        log.info("homeserver_stopped", url=self.url)

    async def kill(self) -> None:
        """End Synapse at once (SIGKILL) and wait until it is gone. Repeated: does nothing."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):  # it has just died by itself
            process.kill()
        await process.wait()

    async def restart(self) -> None:
        """Start again at the same URL with the same data (`in_memory`: none), stopping first if it still runs."""
        await self.stop()
        await self._launch()

    async def register(self, user: str, password: str, admin: bool = False) -> str:
        """Make the account `user` (the part before the colon) and return its user id; one that exists stays as it is.

        No device is made: that is left to the login of whoever uses the account. Raises `HomeserverFailed`.
        """
        url = f"{self.url}/_synapse/admin/v1/register"
        async with _http() as http:
            async with http.get(url) as response:
                nonce = str((await response.json())["nonce"])
            role = "admin" if admin else "notadmin"
            proof = hmac.new(self._identity.registration_shared_secret.encode(), digestmod=hashlib.sha1)
            proof.update("\0".join((nonce, user, password, role)).encode())
            account = {"nonce": nonce, "username": user, "password": password, "admin": admin, "inhibit_login": True}
            async with http.post(url, json=account | {"mac": proof.hexdigest()}) as response:
                answer = await response.json()
        if "user_id" not in answer and answer.get("errcode") != "M_USER_IN_USE":
            raise HomeserverFailed(f"{self.url} refused to register {user!r}: {answer.get('error')}; use another name")
        return f"@{user.lower()}:{self.server_name}"

    async def login(self, user: str, password: str, device_id: str | None = None) -> Credentials:
        """Log `user` in; without `device_id` this makes a new device. Raises `HomeserverFailed`."""
        body: dict[str, object] = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": user},
            "password": password,
        }
        if device_id is not None:
            body["device_id"] = device_id
        async with _http() as http, http.post(f"{self.url}/_matrix/client/v3/login", json=body) as response:
            answer = await response.json()
        if response.status != 200:
            raise HomeserverFailed(
                f"{self.url} refused to log {user!r} in: {answer.get('error')}; "
                f"if its password is lost, delete {self.folder} to start afresh"
            )
        return Credentials(answer["user_id"], answer["device_id"], answer["access_token"])

    async def _launch(self) -> None:
        if not _is_free(self.port):
            raise HomeserverFailed(
                f"the embedded homeserver can't use port {self.port} of {HOST}, which is taken: "
                "stop the program that has it, or choose another port"
            )
        began = time.monotonic()
        self._folder.write_config(self._identity, HOST, self._in_memory)
        with self._folder.open_log() as output:
            log_start = output.tell()
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", str(Path(__file__).with_name("tether.py")), str(os.getpid())),
                *("synapse.app.homeserver", "-c", str(self._folder.config_file)),
                cwd=self.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                umask=0o077,
                start_new_session=True,  # Ctrl-C in the terminal is for Musher alone, which then stops Synapse in order
            )
        await self._wait_until_ready(self._process, log_start)
        log.info("homeserver_started", url=self.url, pid=self.pid, seconds=round(time.monotonic() - began, 2))

    async def _wait_until_ready(self, process: asyncio.subprocess.Process, log_start: int) -> None:
        try:
            async with asyncio.timeout(self._ready_within), _http() as http:
                while process.returncode is None:
                    if await _is_healthy(http, self.url):
                        return
                    await asyncio.sleep(POLL_EVERY)
            problem = f"ended with exit code {process.returncode} while starting"
        except TimeoutError:
            await self.stop()
            problem = f"was not ready within {self._ready_within:g} s"
        raise HomeserverFailed(
            f"the embedded homeserver in {self.folder} {problem}: see {self.log_file}; its last lines:\n"
            + self._folder.last_lines(log_start)
        )


def _settle_identity(files: SynapseFolder, port: int | None, server_name: str) -> Identity:
    """The identity kept in the folder, or a new one; in either case with a port to listen on, and stored."""
    identity = files.read_identity() or new_identity(server_name)
    if port:
        identity = replace(identity, port=port)
    elif not (identity.port and _is_free(identity.port)):
        identity = replace(identity, port=_free_port())
    files.write_identity(identity)
    return identity


def _http() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))


async def _is_healthy(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(f"{url}/health") as response:
            return response.status == 200
    except aiohttp.ClientConnectionError:
        return False  # it does not listen yet


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _free_port() -> int:
    for port in random.sample(PORTS, 100):
        if _is_free(port):
            return port
    raise HomeserverFailed(f"100 ports of {HOST} from {PORTS.start} on are all in use: name a free one")
