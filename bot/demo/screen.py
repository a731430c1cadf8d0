"""The chat on a terminal that can do more than print: a conversation above, and below it a line to type in.

The conversation is printed once and then belongs to the terminal: it scrolls, can be searched and copied, and stays
when the demo has ended. Only the lines at the bottom are drawn again and again: who is typing, what is being typed,
and the newest pipeline events.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import Final

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.data_structures import Size
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import Dimension, FormattedTextControl, HSplit, Layout, Window
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.styles import Style
from prompt_toolkit.widgets import TextArea
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bot.demo.conversation import Said
from bot.demo.display import EARLIER_SHOWN, Introduction, is_of_bot, is_of_person, name_of
from bot.demo.markdown import read_markdown, to_ansi
from bot.demo.pipeline import SETBACKS, SUCCESSES
from bot.demo.terminal import Terminal, isolated, visible
from crdt import PipelineEvent

MOST_EVENTS: Final = 6
"""Events at the bottom of a tall terminal; a lower one shows one for every eight of its rows."""
_PROMPT: Final = "› "
_HIGHEST_INPUT: Final = 6
_STYLE: Final = Style.from_dict(
    {
        "prompt": "ansicyan bold",
        "typing": "ansigreen italic",
        "faint": "ansibrightblack",
        "setback": "ansired",
        "success": "ansigreen",
    }
)


class Screen:
    """Shows the chat, and takes what is typed below it."""

    waits_for_replies = False

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._typed: asyncio.Queue[str | None] = asyncio.Queue()
        self._events: deque[tuple[datetime, PipelineEvent]] = deque(maxlen=MOST_EVENTS)
        self._typing = False
        self._history = InMemoryHistory()
        # Without asking the terminal where its cursor is: answers that come late, over ssh, would look like typing.
        self._output = Vt100_Output(sys.stdout, _size, term=os.environ.get("TERM"), enable_cpr=False)
        self._application = self._build()

    def introduce(self, introduction: Introduction) -> None:
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="dim", no_wrap=True)
        facts.add_column(overflow="fold")
        facts.add_row("homeserver", introduction.url)
        facts.add_row("room", introduction.alias)
        facts.add_row("user", Text.assemble(introduction.user_id, ("  password  ", "dim"), introduction.password))
        if introduction.web:
            facts.add_row("browser", introduction.web)
        facts.add_row("kept in", f"{introduction.folder}/  (log: {introduction.log_file})")
        head = Text.assemble(
            ("Musher", "bold green"), " is in the room ", (introduction.room_name, "bold"), " with you. "
        )
        hint = Text.assemble("A sample pipeline runs below. Ask: ", ("what happened?", "bold"), "  ·  /help  ·  /quit")
        join = Text("Join with any Matrix client on this machine, too:")
        self._print(Group(head.append(introduction.voice), join, Padding(facts, (0, 0, 0, 2)), hint))

    def recall(self, earlier: Sequence[Said]) -> None:
        if earlier:
            self._print(Text("Earlier in this room", "dim"))
        for said in earlier[-EARLIER_SHOWN:]:
            self._show(said)
        for said in earlier:
            if is_of_person(said):
                self._history.append_string(said.body)

    def say(self, said: Said) -> None:
        if not said.here:
            self._show(said)

    def move(self, event: PipelineEvent) -> None:
        self._events.appendleft((datetime.now().astimezone(), event))
        self._application.invalidate()

    def type(self, typing: bool) -> None:
        self._typing = typing
        self._application.invalidate()

    def tell(self, text: str) -> None:
        self._print(Text(visible(text)))

    def note(self, text: str) -> None:
        self._print(Text(visible(text), "dim"))

    async def lines(self) -> AsyncGenerator[str, None]:
        drawing = asyncio.create_task(self._draw())
        try:
            while (line := await self._typed.get()) is not None:
                yield line
        finally:
            drawing.cancel()
            await asyncio.wait({drawing})
        if not drawing.cancelled():
            drawing.result()

    async def _draw(self) -> None:
        try:
            await self._application.run_async(handle_sigint=False, set_exception_handler=False)
        except EOFError:
            """The terminal hung up."""
        finally:
            self._typed.put_nowait(None)

    # What is printed once

    def _show(self, said: Said) -> None:
        if is_of_person(said):
            self._print(_spoken(said.body))
            return
        body = read_markdown(said.body) if is_of_bot(said) else Text(visible(said.body))
        head = Text(isolated(visible(name_of(said))), "bold red" if said.failed else "bold green")
        self._print(Group(head, Padding(body, (0, 0, 0, 2))))

    def _print(self, renderable: RenderableType) -> None:
        """Print above the lines at the bottom, with an empty line before it."""
        with self._terminal.kept_open():
            if self._application.is_running:
                self._application.renderer.erase()
            self._output.write_raw("\n" + to_ansi(renderable, self._output.get_size().columns))
            self._output.flush()
        self._application.invalidate()

    # What is drawn at the bottom

    def _build(self) -> Application[None]:
        typing = Window(FormattedTextControl(self._typing_line), height=Dimension(min=0, max=1, preferred=1))
        area = TextArea(
            get_line_prefix=_line_prefix,
            height=Dimension(min=1, max=_HIGHEST_INPUT),
            dont_extend_height=True,
            history=self._history,
            accept_handler=self._accept,
        )
        events = Window(FormattedTextControl(self._event_lines), dont_extend_height=True, height=self._events_height)
        return Application(
            Layout(HSplit([typing, area, events])),
            key_bindings=self._bindings(area.buffer),
            style=_STYLE,
            output=self._output,
            color_depth=ColorDepth.from_env(),
            erase_when_done=True,
            terminal_size_polling_interval=None,
        )

    def _bindings(self, buffer: Buffer) -> KeyBindings:
        bindings = KeyBindings()

        @bindings.add("enter", eager=True)
        def _(event: KeyPressEvent) -> None:
            buffer.validate_and_handle()

        @bindings.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            buffer.newline()

        @bindings.add("c-c")
        @bindings.add("c-d", filter=Condition(lambda: not buffer.text))
        def _(event: KeyPressEvent) -> None:
            self._typed.put_nowait(None)

        @bindings.add("c-z")
        def _(event: KeyPressEvent) -> None:
            event.app.suspend_to_background()

        return bindings

    def _accept(self, buffer: Buffer) -> bool:
        text = buffer.text.strip()
        if text:
            self._print(_spoken(text))
            self._typed.put_nowait(text)
        return False  # the line is emptied

    def _typing_line(self) -> StyleAndTextTuples:
        return [("class:typing", "Musher is typing …")] if self._typing else []

    def _events_height(self) -> Dimension:
        shown = min(MOST_EVENTS, self._output.get_size().rows // 8)
        return Dimension(min=0, max=shown + 1, preferred=shown + 1)

    def _event_lines(self) -> StyleAndTextTuples:
        lines: StyleAndTextTuples = [("class:faint", "pipeline")]
        for when, event in self._events:
            kind = event.pipeline_event
            story, *stages = (isolated(visible(t)) for t in (event.story_id, event.from_stage, event.to_stage) if t)
            style = "class:setback" if kind in SETBACKS else "class:success" if kind in SUCCESSES else ""
            lines += [
                ("class:faint", f"\n  {when:%H:%M:%S}  "),
                ("", f"{story}  {' → '.join(stages)}  "),
                (style, isolated(visible(kind))),
            ]
        return lines


def _line_prefix(line: int, wrapped: int) -> StyleAndTextTuples:
    return [("class:prompt", _PROMPT if line == wrapped == 0 else " " * len(_PROMPT))]


def _size() -> Size:
    """Of the terminal; one that does not tell (a serial line), or has just hung up, is taken for the usual one."""
    try:
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        columns, rows = 0, 0
    return Size(rows=rows or 24, columns=columns or 80)


def _spoken(text: str) -> Table:
    """What the person said, as it stood in the line they typed."""
    grid = Table.grid()
    grid.add_column(width=len(_PROMPT), style="bold cyan")
    grid.add_column(overflow="fold", style="bold")
    grid.add_row(_PROMPT, Text(visible(text)))
    return grid
