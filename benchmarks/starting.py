"""Row 8: from the start of the service to its first answer, what importing takes, and what is installed."""

from __future__ import annotations

import asyncio
import sys
import time
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from benchmarks.figure import Figure, quantity
from benchmarks.round_trip import DIGEST, answered, enter
from bot.demo.homeserver import Homeserver
from tests.bot.matrix.e2ee.nio_person import NioPerson
from tests.servers.synapse import PASSWORD
from tests.system.service import MusherProcess


async def first_answers(folder: Path, times: int) -> list[float]:
    """Start the service with a message waiting; seconds until that is answered."""
    took = []
    async with (
        Homeserver.start(folder / "synapse", in_memory=True) as homeserver,
        NioPerson.on(homeserver, "alice", folder / "alice") as alice,
    ):
        user_id = await homeserver.register("musher", PASSWORD)
        service = MusherProcess(folder / "musher", homeserver.url, user_id, "", DIGEST)
        await service.start()
        (room,) = await enter(alice, user_id, 1, encrypted=False)
        for _ in range(times):
            await service.stop()
            waiting = asyncio.create_task(answered(alice, [room], user_id))
            started = time.perf_counter()
            await service.start(ready=False)
            await waiting
            took.append(time.perf_counter() - started)
        await service.kill()
    return took


async def imports(module: str, times: int) -> list[float]:
    """Seconds that a fresh interpreter takes for an import, without those that it takes for nothing."""
    return [await _run(f"import {module}") - await _run("pass") for _ in range(times)]


async def _run(code: str) -> float:
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
    return time.perf_counter() - started


def installed_mb(name: str = "musher") -> tuple[float, int]:
    """MB of the files of a package and of all that it needs, without extras of its own; how many packages that is."""
    seen: set[tuple[str, str]] = set()
    files: set[Path] = set()
    waiting = [(name, "")]
    while waiting:
        package, extra = waiting.pop()
        if (package, extra) in seen:
            continue
        seen.add((package, extra))
        try:
            found = distribution(package)
        except PackageNotFoundError:  # for another platform or Python
            continue
        files.update(path for file in found.files or () if (path := Path(str(file.locate()))).is_file())
        for requirement in map(Requirement, found.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(requirement.name, wanted) for wanted in ("", *requirement.extras)]
    return sum(file.stat().st_size for file in files) / 1e6, len({package.lower() for package, _ in seen})


async def measure(folder: Path, quick: bool) -> list[Figure]:
    """The row."""
    size, packages = installed_mb()
    times = 3 if quick else 7
    return [
        quantity("8", "start of the service to the first answer", await first_answers(folder, times), "s"),
        quantity("8", "import of bot.app", await imports("bot.app", times), "s"),
        quantity("8", "import of crdt", await imports("crdt", times), "s"),
        quantity("8", "installed size, no extras", [size], "MB", packages=packages),
    ]
