"""Sets the scene: a homeserver, the service, a room with a person and the bot in it, and the sample pipeline.

All of it lies in one folder, lives in or below this process, and ends in order when the scene is left.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp

from bot.config import Config, LlmConfig
from bot.demo.accounts import BOT, PERSON, Passwords
from bot.demo.conversation import Conversation, Said
from bot.demo.feed import Feed
from bot.demo.homeserver import Homeserver
from bot.demo.person import Person
from bot.demo.pipeline import SamplePipeline
from bot.errors import MusherError
from crdt import PipelineEvent, RecordedEvent, StoreReader

if TYPE_CHECKING:
    from bot.app import Started

RunService = Callable[..., Coroutine[None, None, None]]

ROOM_NAME: Final = "Sled team"
ROOM_ALIAS: Final = "sled-team"
DEVICE_ID: Final = "MUSHERDEMO"
"""The person's one device, so that a new start makes no new one."""
JOIN_WITHIN_S: Final = 30.0
_EVENTS_A_PAGE: Final = 10_000


class BotAbsent(MusherError):
    """The bot did not accept its invitation."""

    def __init__(self, log_file: Path) -> None:
        super().__init__(f"the bot did not join the room within {JOIN_WITHIN_S:g} s: {log_file} tells why")


@dataclass(frozen=True, slots=True)
class Scene:
    """What stands while the demo runs. `earlier` is what was said in the room of late, before this start."""

    homeserver: Homeserver
    alias: str
    password: str = field(repr=False)
    conversation: Conversation
    feed: Feed
    earlier: list[Said]


def log_file(folder: Path) -> Path:
    """Where the service tells what it does."""
    return folder / "musher.log"


@asynccontextmanager
async def open_scene(
    folder: Path,
    llm: LlmConfig,
    *,
    in_memory: bool,
    on_said: Callable[[Said], None],
    on_event: Callable[[PipelineEvent], None],
    on_typing: Callable[[bool], None] = lambda typing: None,
) -> AsyncIterator[Scene]:
    """Start everything, and end it with the block. A `folder` that was used before goes on where it stopped.

    `in_memory` keeps the homeserver's data in memory. Raises whatever the homeserver or the service can't start or go
    on for: `MusherError`s, `CrdtError`s, and groups of them.
    """
    loading = asyncio.create_task(asyncio.to_thread(_load_service))  # 1 s, while Synapse starts
    async with (
        Homeserver.start(folder, in_memory=in_memory) as homeserver,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http,
    ):
        passwords = Passwords.kept_in(folder)
        bot_id, person_id = await asyncio.gather(
            homeserver.register(BOT, passwords.bot), homeserver.register(PERSON, passwords.person)
        )
        token = secrets.token_urlsafe(32)
        config = _config(folder, llm, homeserver.url, bot_id, person_id, passwords.bot, token)
        async with asyncio.TaskGroup() as tasks, _serving(tasks, await loading, config) as started:
            person = Person(homeserver.url, await homeserver.login(PERSON, passwords.person, DEVICE_ID), http)
            alias = f"#{ROOM_ALIAS}:{homeserver.server_name}"
            room_id = await _enter_room(person, alias, bot_id)
            port = (await asyncio.shield(started)).ingest_port  # the service will tell, wanted or not
            events_url = f"http://{config.ingest.host}:{port}/v1/events"
            feed = Feed(http, events_url, token, SamplePipeline(), on_event)
            feed.resume(await _recorded(config.store.path))
            await _wait_for_bot(person, room_id, bot_id, folder)
            conversation = Conversation(person, room_id, on_said, on_typing)
            earlier = await conversation.open()
            listening = tasks.create_task(conversation.run())
            yield Scene(homeserver, alias, passwords.person, conversation, feed, earlier)
            listening.cancel()


@asynccontextmanager
async def _serving(
    tasks: asyncio.TaskGroup, run_service: RunService, config: Config
) -> AsyncIterator[asyncio.Future[Started]]:
    """Run the service, and end it in order with the block; before it has started there is nothing to put in order."""
    stop = asyncio.Event()
    started: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
    service = tasks.create_task(run_service(config, stop=stop, on_started=started.set_result))
    try:
        yield started
    finally:
        stop.set()
        if not started.done():
            service.cancel()
        await asyncio.wait({service})


def _load_service() -> RunService:
    from bot.app import run_service

    return run_service


def _config(folder: Path, llm: LlmConfig, url: str, bot_id: str, person_id: str, password: str, token: str) -> Config:
    return Config.model_validate(
        {
            "matrix": {
                "homeserver": url,
                "user_id": bot_id,
                "password": password,
                "allowed_users": [person_id],
            },
            "store": {"path": folder / "musher.db"},
            "sled": {"id": "demo"},
            "llm": llm,
            "ingest": {"host": "127.0.0.1", "port": 0, "tokens": [token]},
            "admin": {"port": 0},
        }
    )


async def _enter_room(person: Person, alias: str, bot_id: str) -> str:
    """Go into the room of an earlier start, or make it; in either case the bot is invited."""
    room_id = await person.find_room(alias)
    if room_id is None:
        return await person.create_room([bot_id], name=ROOM_NAME, room_alias_name=ROOM_ALIAS)
    await person.join(room_id)
    if await person.membership(room_id, bot_id) == "leave":
        await person.invite(room_id, bot_id)
    return room_id


async def _wait_for_bot(person: Person, room_id: str, bot_id: str, folder: Path) -> None:
    try:
        async with asyncio.timeout(JOIN_WITHIN_S):
            _, since = await person.sync(room_id, None)
            while await person.membership(room_id, bot_id) != "join":
                _, since = await person.sync(room_id, since)
    except TimeoutError as error:
        raise BotAbsent(log_file(folder)) from error


async def _recorded(database: Path) -> list[RecordedEvent]:
    events: list[RecordedEvent] = []
    async with StoreReader.open(database) as reader:
        while page := await reader.read_events(after=events[-1].event_seq if events else 0, limit=_EVENTS_A_PAGE):
            events += page
    return events
