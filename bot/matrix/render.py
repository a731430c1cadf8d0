"""Turns a model's Markdown into the HTML that Matrix clients may show.

Rules for the next editor:

- Nothing that a model writes may vanish from view. Raw HTML is therefore shown as the text it is (`List<String>`
  must not become `List`), and reference definitions are off (`[INFO]: started` is one, and would render as nothing).
- The list of tags and attributes is the Matrix specification's (client-server API v1.18, "m.room.message msgtypes"),
  and the sanitiser has the last word on every block.
- Time is bounded by the length of the input. markdown-it is quadratic in unclosed brackets and in lazy lines after
  deep quotes, and drops what is nested beyond its limit; such blocks show as their source.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock, table
from markdown_it.rules_block.table import escapedSplit, getLine
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

HTML_INPUT_LIMIT: Final = 262_144
"""Code points of Markdown beyond which a reply goes out without HTML. Prose of this size takes 0.4 s, measured."""

HTML_LINE_LIMIT: Final = 40_000
"""Lines beyond which it does: markdown-it asks every rule at each line, about 10 µs, measured."""

HTML_TOKEN_LIMIT: Final = 100_000
"""Tokens of markdown-it beyond which it does: each costs about 15 µs, measured; a list item is five of them."""

SOURCE: Final = "source"
"""Kind of a block that can't be rendered and shows as its source."""

OPAQUE: Final = "opaque"
"""Kind of the one block of a reply that is not parsed at all."""

_TAGS: Final = (
    "del h1 h2 h3 h4 h5 h6 blockquote p a ul ol sup sub li b i u strong em s code hr br div table thead tbody tr th td "
    "caption pre span img details summary"
)
_ATTRIBUTES: Final[dict[str, set[str]]] = {
    "*": set(),
    "span": {"data-mx-bg-color", "data-mx-color", "data-mx-spoiler", "data-mx-maths"},
    "a": {"target", "href"},
    "img": {"width", "height", "alt", "title", "src"},
    "ol": {"start"},
    "code": {"class"},
    "div": {"data-mx-maths"},
}
_LINK_SCHEMES: Final = frozenset({"https", "http", "ftp", "mailto", "magnet"})

_MAX_NESTING: Final = 20
"""markdown-it's own limit for block levels; ten lists within lists."""

_MAX_DEPTH: Final = 98
"""Levels of tokens in a block; the specification allows 100 levels of tags, and `<pre><code>` is one token."""

_MAX_INLINE: Final = 10_000
_MAX_OPEN_BRACKETS: Final = 8
_MAX_EXPANSION: Final = 16
"""HTML longer than this many times its source is a trick (a row of one cell under 500 columns), not a table."""

_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_DEEP_QUOTE = re.compile(r"^[ \t]*(?:>[ \t]*){9}", re.MULTILINE)
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_BRACKET = re.compile(r"[\[\]]")
_LANGUAGE = re.compile(r"[A-Za-z][\w+#-]*")
"""What may follow an opening fence and be hidden in a class."""


@dataclass(frozen=True, slots=True)
class Block:
    """A top-level block of a reply.

    `kind` is markdown-it's token type without `_open`, or `SOURCE` or `OPAQUE`. `text` is its lines with the blank ones
    after it: the texts of all blocks, joined by newlines, are the reply. `html` is sanitised. A `plain` block says the
    same without HTML. One that `goes_on` continues the block before it, which was cut, in a new event.
    """

    kind: str
    text: str
    html: str
    plain: bool
    goes_on: bool = False


class _TooManyTokens(Exception):
    """The blocks of a reply are so many that it is not worth rendering."""


def clean_reply(text: str) -> str:
    """Remove what breaks JSON or clients: control characters (category Cc, but newline and tab) and lone surrogates.

    Line ends become newlines.
    """
    return _UNWANTED.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def render_html(markdown: str) -> str | None:
    """Render Markdown as the `formatted_body` of `org.matrix.custom.html`.

    Returns `None` where HTML adds nothing to the plain text: nothing but paragraphs without markup, or too much input.
    """
    return join_html(parse_blocks(clean_reply(markdown)))


def join_html(blocks: Sequence[Block]) -> str | None:
    """Put the HTML of blocks together, `None` where it adds nothing to their text."""
    if all(block.plain for block in blocks):
        return None
    joined = "".join(block.html for block in blocks).strip()
    if len(blocks) == 1 and blocks[0].kind == "paragraph":
        # The specification asks senders for no paragraph tags around a text that is one paragraph.
        joined = joined.removeprefix("<p>").removesuffix("</p>")
    return joined or None


def parse_blocks(markdown: str) -> list[Block]:
    """Split Markdown (as `clean_reply` leaves it) at the borders of its top-level blocks, each with its HTML."""
    opaque = [Block(OPAQUE, markdown, "", plain=True)]
    lines = markdown.split("\n")
    if len(markdown) > HTML_INPUT_LIMIT or len(lines) > HTML_LINE_LIMIT or _DEEP_QUOTE.search(markdown):
        return opaque
    try:
        groups = list(_top_level(_MARKDOWN.parse(markdown)))
    except _TooManyTokens:
        return opaque
    starts = [0, *(_first_line(group) for group in groups[1:]), len(lines)]
    return [_block(group, "\n".join(lines[starts[number] : starts[number + 1]])) for number, group in enumerate(groups)]


def list_items(markdown: str) -> list[str]:
    """Split the text of a list block into the texts of its top-level items."""
    tokens = _BLOCKS_ONLY.parse(markdown)
    starts = [_first_line([token]) for token in tokens if token.type == "list_item_open" and token.level == 1]
    lines = markdown.split("\n")
    return ["\n".join(lines[start:end]) for start, end in zip([0, *starts[1:]], [*starts[1:], len(lines)], strict=True)]


def _top_level(tokens: Iterable[Token]) -> Iterable[list[Token]]:
    group: list[Token] = []
    for token in tokens:
        group.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield group
            group = []


def _first_line(group: Sequence[Token]) -> int:
    lines = group[0].map
    assert lines is not None, f"markdown-it gave a {group[0].type} token without lines"
    return lines[0]


def _block(tokens: Sequence[Token], text: str) -> Block:
    kind = tokens[0].type.removesuffix("_open")
    rendered = ""
    if _depth(tokens) < _MAX_DEPTH and all(token.level < _MAX_NESTING - 1 for token in tokens):
        rendered = _CLEANER.clean(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}))
    if kind == "table":
        # Hydrogen shows no message at all whose table has text between its rows, and be it a line break.
        rendered = rendered.replace(">\n<", "><")
    if not rendered or len(rendered) > _MAX_EXPANSION * len(text) + 256:
        return Block(SOURCE, text, f"<pre><code>{html.escape(text, quote=False)}</code></pre>\n", plain=False)
    return Block(kind, text, rendered, _is_plain(rendered, text))


def _depth(tokens: Sequence[Token]) -> int:
    return max(token.level + max((child.level for child in token.children or ()), default=0) for token in tokens)


def _is_plain(rendered: str, text: str) -> bool:
    if not rendered.startswith("<p>"):
        return False
    shown = rendered.strip().removeprefix("<p>").removesuffix("</p>").replace("<br>\n", "\n")
    return "<" not in shown and html.unescape(shown) == text.strip()


def _allow_attribute(tag: str, attribute: str, value: str) -> str | None:
    if attribute == "class":
        return " ".join(name for name in value.split() if name.startswith("language-")) or None
    if attribute == "src":
        return value if value.startswith("mxc://") else None
    if attribute == "href" and value.partition(":")[0].lower() not in _LINK_SCHEMES:
        return None
    return value


def _render_raw_html(
    _renderer: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, _env: EnvType
) -> str:
    """Show raw HTML as text, but for the line break: tables have no other way to write one."""
    content = tokens[index].content
    return "<br>" if _LINE_BREAK.fullmatch(content) else html.escape(content)


def _render_image(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    """Show an image of the homeserver's; any other becomes a link, since clients may not fetch it."""
    source = str(tokens[index].attrGet("src") or "")
    if source.startswith("mxc://"):
        return renderer.image(tokens, index, options, env)
    label = html.escape(renderer.renderInlineAsText(tokens[index].children or [], options, env) or source)
    if index and tokens[index - 1].type == "link_open":
        return label
    return f'<a href="{html.escape(source)}">{label}</a>'


def _render_fence(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    """Show code; with its fence where more stands there than a language, or nothing below it."""
    fence = tokens[index]
    info = fence.info.strip()
    if not info or (_LANGUAGE.fullmatch(info) and fence.content.strip()):
        return renderer.fence(tokens, index, options, env)
    content = fence.content.rstrip("\n")
    source = "\n".join([fence.markup + fence.info, *([content] if content else []), fence.markup])
    return f"<pre><code>{html.escape(source, quote=False)}\n</code></pre>\n"


def _render_link(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    """Begin a link; one without a text shows where it leads."""
    opening = renderer.renderToken(tokens, index, options, env)
    follows = tokens[index + 1]
    is_empty = follows.type == "link_close" or (
        follows.type == "text" and not follows.content.strip() and tokens[index + 2].type == "link_close"
    )
    return opening + html.escape(str(tokens[index].attrGet("href"))) if is_empty else opening


def _whole_table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A block rule: a table. One with cells beyond its header's, which markdown-it drops, becomes its source."""
    begun = len(state.tokens)
    is_table = table(state, start, end, silent)
    if silent or not is_table:
        return is_table
    columns = sum(token.type == "th_open" for token in state.tokens[begun:])
    if any(_has_more_cells(getLine(state, row), columns) for row in range(start + 2, state.line)):
        del state.tokens[begun:]
        source = state.push("code_block", "code", 0)
        source.content = state.getLines(start, state.line, state.blkIndent, True)
        source.map = [start, state.line]
    return True


def _has_more_cells(row: str, columns: int) -> bool:
    cells = escapedSplit(row.strip().removeprefix("|"))
    return any(cell.strip() for cell in cells[columns:])


def _calm_tangles(state: StateCore) -> None:
    """Make text of what markdown-it's inline parser would take more than linear time for. Raises `_TooManyTokens`."""
    if len(state.tokens) > HTML_TOKEN_LIMIT:
        raise _TooManyTokens
    for token in state.tokens:
        if token.type == "inline" and _is_tangled(token.content):
            token.children = [Token("text", "", 0, content=token.content)]
            token.content = ""


def _is_tangled(text: str) -> bool:
    return len(text) > _MAX_INLINE or _most_open(text) > _MAX_OPEN_BRACKETS


def _most_open(text: str) -> int:
    most = now = 0
    for bracket in _BRACKET.findall(text):
        now = now + 1 if bracket == "[" else max(0, now - 1)
        most = max(most, now)
    return most


class _Parser(MarkdownIt):
    """markdown-it that shows a link or an image as its source where a client could not follow it."""

    def validateLink(self, url: str) -> bool:
        return url.partition(":")[0].lower() in _LINK_SCHEMES | {"mxc"}


def _make_parser() -> MarkdownIt:
    # Newlines stay line breaks: people and models write them as such in a chat, and the plain body shows them so.
    parser = _Parser("commonmark", {"html": True, "breaks": True, "xhtmlOut": False, "maxNesting": _MAX_NESTING})
    parser.block.ruler.at("table", _whole_table, {"alt": ["paragraph", "reference"]})
    return parser.enable(["table", "strikethrough"]).disable(["html_block", "reference"])


_BLOCKS_ONLY: Final = _make_parser().disable(["inline", "text_join"])
_MARKDOWN: Final = _make_parser()
_MARKDOWN.core.ruler.before("inline", "calm_tangles", _calm_tangles)
_MARKDOWN.add_render_rule("html_inline", _render_raw_html)
_MARKDOWN.add_render_rule("image", _render_image)
_MARKDOWN.add_render_rule("fence", _render_fence)
_MARKDOWN.add_render_rule("link_open", _render_link)

_CLEANER: Final = nh3.Cleaner(
    tags=frozenset(_TAGS.split()),
    attributes=_ATTRIBUTES,
    attribute_filter=_allow_attribute,
    url_schemes=_LINK_SCHEMES | {"mxc"},
    url_relative="deny",
    link_rel=None,
)
