"""The browser client of `musher demo --web`: built once with npm, served on loopback, already logged in."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from aiohttp import web

from bot.demo.homeserver import HOST, Credentials
from bot.errors import MusherError

DEVICE_ID: Final = "MUSHERWEB"
"""The browser's one device, so that a new start makes no new one."""
_SOURCES: Final = Path(__file__).with_name("web_client")
_COMMANDS: Final = (
    ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"),
    ("npm", "run", "--silent", "build"),
)
_BUILD_WITHIN_S: Final = 300.0


class ClientNotBuilt(MusherError):
    """There is no browser client; the rest of the demo works without it."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"no browser client: {problem}")


async def build_client(folder: Path) -> Path:
    """Build the client in `folder`, unless that was done before, and return the folder of its files.

    Raises `ClientNotBuilt`.
    """
    built, work = _lay_out(folder)
    if work is not None:
        for command in _COMMANDS:
            await _run(command, work, folder / "build.log")
        (work / "site").rename(built)
        shutil.rmtree(work)
    return built


def _lay_out(folder: Path) -> tuple[Path, Path | None]:
    """Say where the client belongs, and where to build it if it is not there yet: it is there whole, or not at all."""
    sources = sorted(path for path in _SOURCES.iterdir() if path.is_file())
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
    built, work = folder / digest[:16], folder / "build"
    if built.exists():
        return built, None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    (work / "site").mkdir(parents=True)
    for path in sources:
        shutil.copy(path, work)
    shutil.copy(work / "index.html", work / "site")
    return built, work


async def _run(command: tuple[str, ...], work: Path, log: Path) -> None:
    """Run a step of the build; it ends with this call, whatever happens."""
    if shutil.which(command[0]) is None:
        raise ClientNotBuilt(f"{command[0]} is not installed; it comes with Node.js 18 or newer")
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=work, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            async with asyncio.timeout(_BUILD_WITHIN_S):
                code = await process.wait()
        except TimeoutError:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # they have ended by themselves
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if code != 0:
        problem = f"took over {_BUILD_WITHIN_S:g} s" if code is None else f"failed with exit code {code}"
        raise ClientNotBuilt(f"'{' '.join(command)}' {problem}; {log} tells why")


@asynccontextmanager
async def serve_client(files: Path, homeserver: str, credentials: Credentials, room_id: str) -> AsyncIterator[str]:
    """Serve the client while the block runs, and give its address.

    The address holds a secret, since whoever opens it is logged in with `credentials`.
    """
    session = {
        # What the browser has stored belongs to this room's homeserver: another one may have its address some day.
        "id": hashlib.sha256(room_id.encode()).hexdigest()[:16],
        "homeserver": homeserver,
        "userId": credentials.user_id,
        "deviceId": credentials.device_id,
        "accessToken": credentials.access_token,
        "room_id": room_id,
    }
    policy = (
        f"default-src 'self'; connect-src 'self' {homeserver}; img-src 'self' data: blob: {homeserver}; "
        "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}

    async def protect(request: web.BaseRequest, response: web.StreamResponse) -> None:
        response.headers.update(headers)
        response.headers.setdefault("Cache-Control", "no-store")

    async def index(request: web.Request) -> web.FileResponse:
        return web.FileResponse(files / "index.html")

    async def log_in(request: web.Request) -> web.Response:
        return web.json_response(session)

    root = f"/{secrets.token_urlsafe(16)}/"
    app = web.Application()
    app.on_response_prepare.append(protect)
    app.add_routes([web.get(root, index), web.get(f"{root}session.json", log_in), web.static(root, files)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, 0)
        await site.start()
        [address] = runner.addresses
        yield f"http://{HOST}:{address[1]}{root}"
    finally:
        await runner.cleanup()
