"""The chat: what is typed is said in the room; replies and pipeline events are shown as they come."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

from bot.demo.accounts import PERSON
from bot.demo.display import HELP, Display, Introduction, event_line
from bot.demo.person import Refused
from bot.demo.plain import Plain
from bot.demo.scene import ROOM_NAME, Scene, log_file, open_scene
from bot.demo.terminal import Terminal
from bot.demo.voice import Voice
from bot.demo.web import DEVICE_ID, ClientNotBuilt, build_client, serve_client
from bot.errors import MusherError

_LIBRARIES: Final = ("prompt_toolkit", "rich")


class ScreenMissing(MusherError):
    """The libraries that draw the chat are not installed."""

    def __init__(self, library: str) -> None:
        super().__init__(
            f"the chat needs {library}, which is not installed: install the extra `demo` with 'uv sync --all-extras', "
            "or have plain lines with TERM=dumb"
        )


async def chat(web: bool, folder: Path, voice: Voice, terminal: Terminal) -> None:
    """Set the scene in `folder`, which is kept, and chat until `/quit` or the end of the input.

    `web` serves a browser client beside it.

    Raises `ScreenMissing`, and what `open_scene` does.
    """
    display = _display(terminal)
    display.note("starting a homeserver and the bot …")
    async with (
        open_scene(
            folder, voice.llm, in_memory=False, on_said=display.say, on_event=display.move, on_typing=display.type
        ) as scene,
        _browser_client(web, folder, scene, display) as address,
    ):
        display.recall(scene.earlier)
        display.introduce(_introduction(folder, scene, voice, address))
        await scene.feed.begin()
        async with asyncio.TaskGroup() as tasks:
            moving = tasks.create_task(scene.feed.keep_moving())
            await _converse(display, scene, voice.reply_within_s)
            moving.cancel()


def _display(terminal: Terminal) -> Display:
    if not terminal.can_draw():
        return Plain(terminal)
    for library in _LIBRARIES:
        if importlib.util.find_spec(library) is None:
            raise ScreenMissing(library)
    from bot.demo.screen import Screen

    return Screen(terminal)


@asynccontextmanager
async def _browser_client(wanted: bool, folder: Path, scene: Scene, display: Display) -> AsyncIterator[str | None]:
    """Serve the browser client and give its address; `None` if it is not wanted, or can't be had."""
    if not wanted:
        yield None
        return
    display.note("preparing the browser client …")
    try:
        files = await build_client(folder / "web")
    except ClientNotBuilt as error:
        display.note(str(error))
        yield None
        return
    credentials = await scene.homeserver.login(PERSON, scene.password, DEVICE_ID)
    async with serve_client(files, scene.homeserver.url, credentials, scene.conversation.room_id) as address:
        yield address


def _introduction(folder: Path, scene: Scene, voice: Voice, web: str | None) -> Introduction:
    return Introduction(
        room_name=ROOM_NAME,
        voice=voice.introduction,
        url=scene.homeserver.url,
        alias=scene.alias,
        user_id=scene.conversation.person.user_id,
        password=scene.password,
        folder=folder,
        log_file=log_file(folder),
        web=web,
    )


async def _converse(display: Display, scene: Scene, reply_within_s: float) -> None:
    async with aclosing(display.lines()) as lines:
        async for line in lines:
            text = line.strip()
            if text == "/quit":
                return
            if text.startswith("/"):
                display.tell(_answer(text, scene))
            elif text:
                await _say(display, scene, text, reply_within_s)


async def _say(display: Display, scene: Scene, text: str, reply_within_s: float) -> None:
    try:
        if display.waits_for_replies:
            await scene.conversation.ask(text, reply_within_s)
        else:
            await scene.conversation.say(text)
    except Refused as error:
        display.note(f"not sent: {error}")


def _answer(command: str, scene: Scene) -> str:
    if command == "/help":
        return HELP
    if command == "/events":
        return "\n".join(event_line(event) for event in scene.feed.recent)
    return f"there is no command {command.split(maxsplit=1)[0]}; /help lists them"
