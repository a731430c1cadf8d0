"""Row 6: a message answered on a real Synapse, by Musher and by a bare echo bot, in turns."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.figure import Figure, Round, milliseconds, per_second, ratio
from bot.demo.homeserver import Homeserver
from tests.bot.matrix.e2ee.nio_person import NioPerson
from tests.servers.synapse import PASSWORD
from tests.system.service import MusherProcess, Sections

ROOMS = 20
DIGEST: Sections = {"llm": {"provider": "digest", "base_url": None, "model": None}, "log": {"level": "warning"}}


@asynccontextmanager
async def musher(homeserver: Homeserver, folder: Path) -> AsyncIterator[str]:
    """The service with the provider `digest`; its user id."""
    user_id = await homeserver.register("musher", PASSWORD)
    service = MusherProcess(folder, homeserver.url, user_id, "", DIGEST)
    await service.start()
    try:
        yield user_id
    finally:
        await service.kill()


@asynccontextmanager
async def echo_bot(homeserver: Homeserver, folder: Path) -> AsyncIterator[str]:
    """The echo bot; its user id."""
    user_id = await homeserver.register("echo", PASSWORD)
    folder.mkdir()  # noqa: ASYNC240 - an instant, before anything is measured
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.echo_bot", homeserver.url, user_id, PASSWORD, str(folder))
    )
    try:
        yield user_id
    finally:
        process.kill()
        await process.wait()


async def answered(person: NioPerson, rooms: list[str], bot: str) -> float:
    """Say something in each of the rooms at once; seconds until all are answered."""

    def answers() -> int:
        return sum(event.sender == bot for event in person.heard)

    wanted = answers() + len(rooms)
    started = time.perf_counter()
    await asyncio.gather(*(person.say(room, "what happened?") for room in rooms))
    await person.until(lambda: answers() >= wanted, timeout=60)
    return time.perf_counter() - started


async def enter(person: NioPerson, bot: str, rooms: int, *, encrypted: bool) -> list[str]:
    """Make rooms with the bot in them, and have a first word in each, which shares the keys."""
    made = []
    for _ in range(rooms):
        made.append(await person.create_room(bot, encrypted=encrypted))
        await person.until_member(made[-1], bot)
    await answered(person, made, bot)
    return made


async def compare(person: NioPerson, bots: tuple[str, str], rounds: int, samples: int, encrypted: bool) -> Figure:
    """Round trips in one room each, in turns."""
    rooms = [await enter(person, bot, 1, encrypted=encrypted) for bot in bots]
    measured: list[Round] = []
    for _ in range(rounds):
        took: tuple[list[float], list[float]] = ([], [])
        for number in range(samples):
            for side in (0, 1) if number % 2 else (1, 0):
                took[side].append(await answered(person, rooms[side], bots[side]))
        measured.append(took)
    kind = "encrypted" if encrypted else "plain"
    return ratio(
        *("6", f"message to answer on Synapse, {kind}", "30-line nio echo bot", measured),
        show=milliseconds,
        at_most=1.15,
    )


async def compare_throughput(person: NioPerson, bots: tuple[str, str], rounds: int) -> Figure:
    """One message in each of 20 rooms at once, in turns."""
    rooms = [await enter(person, bot, ROOMS, encrypted=False) for bot in bots]
    measured: list[Round] = []
    for number in range(rounds):
        rates = [0.0, 0.0]
        for side in (0, 1) if number % 2 else (1, 0):
            rates[side] = ROOMS / await answered(person, rooms[side], bots[side])
        measured.append(([rates[0]], [rates[1]]))
    return ratio(
        *("6", f"answers a second, {ROOMS} rooms at once", "30-line nio echo bot", measured),
        show=per_second,
        at_least=0.9,
    )


async def measure(folder: Path, quick: bool) -> list[Figure]:
    """The row."""
    rounds, samples = (3, 5) if quick else (7, 10)
    async with (
        Homeserver.start(folder / "synapse", in_memory=True) as homeserver,
        musher(homeserver, folder / "musher") as ours,
        echo_bot(homeserver, folder / "echo") as theirs,
        NioPerson.on(homeserver, "alice", folder / "alice") as alice,
    ):
        bots = (ours, theirs)
        return [
            await compare(alice, bots, rounds, samples, encrypted=False),
            await compare(alice, bots, rounds, samples, encrypted=True),
            await compare_throughput(alice, bots, 4 if quick else 10),
        ]
