"""Renders what is said for a terminal: Markdown in, lines with styles out.

Nothing in a message can steer the terminal: what is parsed is cleaned before it is laid out, since character references
(`&#x202e;`) make control characters that were not in the source.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import ClassVar, Final

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement, TableElement
from rich.measure import Measurement
from rich.segment import Segment, Segments
from rich.style import Style
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from bot.demo.terminal import visible

WIDEST: Final = 100
"""Columns; longer lines are hard to read."""
NARROWEST: Final = 20
_DEEPEST: Final = 10
"""Levels of lists and quotes inside each other (a list has two: itself and its item), each of which takes columns."""
_THEME: Final = Theme(
    {
        "markdown.code": "cyan",
        "markdown.code_block": "cyan",
        "markdown.block_quote": "italic",
        "markdown.h1": "bold underline",
        "markdown.h2": "bold",
        "markdown.h3": "bold",
        "markdown.h4": "italic",
        "markdown.item.bullet": "cyan",
        "markdown.item.number": "cyan",
        "markdown.hr": "dim",
        "markdown.table.header": "bold",
        "markdown.table.border": "dim",
    }
)
"""Colours of the terminal's own palette alone, without backgrounds: readable on light and on dark."""


def to_ansi(renderable: RenderableType, columns: int) -> str:
    """Lay out for a terminal of that many columns, with its colours unless NO_COLOR is set; ends with a line break.

    Lines carry no blanks at their ends, so that a terminal that is made narrower later has nothing to wrap there.
    """
    console = Console(
        file=io.StringIO(),
        width=max(NARROWEST, min(columns - 1, WIDEST)),
        force_terminal=True,
        legacy_windows=False,
        theme=_THEME,
        highlight=False,
        markup=False,
        emoji=False,
    )
    lines = console.render_lines(renderable, pad=False)
    with console.capture() as capture:
        for line in lines:
            console.print(Segments([*_trimmed(line), Segment.line()]), end="")
    return capture.get()


def read_markdown(text: str) -> RenderableType:
    """Parse what somebody wrote. HTML in it, and Markdown that is nested too deeply, is shown as it is written."""
    # The parser drops what is nested more deeply than it may be.
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 2 * _DEEPEST})
    tokens = parser.enable(["table", "strikethrough"]).disable(["reference"]).parse(text)
    return _Message(tokens) if all(token.level <= _DEEPEST for token in tokens) else Text(visible(text))


def _trimmed(line: list[Segment]) -> list[Segment]:
    line = list(line)
    while line and not line[-1].text.strip(" ") and not _shows_blanks(line[-1].style):
        line.pop()
    if line and not _shows_blanks(line[-1].style):
        line[-1] = line[-1]._replace(text=line[-1].text.rstrip(" "))
    return line


def _shows_blanks(style: Style | None) -> bool:
    return style is not None and bool(style.underline or style.strike or style.reverse or style.bgcolor)


class _Heading(Heading):
    """At the left, without a frame."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text


class _CodeBlock(CodeBlock):
    """Indented, on the terminal's own background."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip("\n")
        yield Syntax(code, self.lexer_name, theme="ansi_dark", word_wrap=True, padding=(0, 2))


class _Table(TableElement):
    """A table; one that is too wide even with its cells wrapped between words becomes a list of its rows."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        heads = [cell.content for cell in self.header.row.cells] if self.header and self.header.row else []
        rows = [[cell.content for cell in row.cells] for row in self.body.rows] if self.body else []
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, border_style="markdown.table.border")
        for head in heads:
            title = head.copy()
            title.stylize("markdown.table.header")
            table.add_column(title)
        for row in rows:
            table.add_row(*row)
        if Measurement.get(console, options.update(width=10_000), table).minimum <= options.max_width:
            yield table
        else:
            yield from _records(heads, rows)


def _records(heads: list[Text], rows: list[list[Text]]) -> Iterator[Text]:
    for number, row in enumerate(rows):
        if number:
            yield Text()
        for head, cell in zip(heads, row, strict=False):
            yield Text.assemble((head.plain, "markdown.table.header"), ": ", cell)


class _Message(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _Heading,
        "fence": _CodeBlock,
        "code_block": _CodeBlock,
        "table_open": _Table,
    }

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = tokens
        for token in tokens:
            _clean(token)


def _clean(token: Token) -> None:
    token.content, token.info = visible(token.content), visible(token.info)
    if token.children is not None:
        token.children = list(_inline(token.children))


def _inline(tokens: Iterable[Token]) -> Iterator[Token]:
    """Line breaks stay where they were written, and what links and images point to is shown beside them."""
    targets: list[str] = []
    said = ""
    for token in tokens:
        _clean(token)
        said += token.content
        if token.type == "softbreak":
            token.type = "hardbreak"
        if token.type == "link_open":
            targets.append(str(token.attrs.get("href", "")))
            said = ""
        elif token.type == "link_close":
            target = targets.pop()
            if target.removeprefix("mailto:") != said:
                yield _text(f" ({target})")
        elif token.type == "image":
            yield _text(f"{token.content} ({token.attrs.get('src', '')})")
        else:
            yield token


def _text(content: str) -> Token:
    return Token("text", "", 0, content=visible(content))
