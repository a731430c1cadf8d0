"""Turns a model's reply into the contents of one or more `m.room.message` events, each small enough to be sent.

A reply is cut at the borders of its Markdown blocks. Only a block that is too large for an event of its own is cut
inside: code between lines, with its fence closed and opened again; a table between rows, with its header repeated; a
list between its items; text after a sentence, else after a word, else between two characters as people see them.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final, Literal, TypeAlias

from bot.matrix.render import OPAQUE, Block, clean_reply, join_html, list_items, parse_blocks

JSON: TypeAlias = "str | int | float | bool | list[JSON] | dict[str, JSON] | None"
Content: TypeAlias = dict[str, JSON]


EVENT_BUDGET: Final = 43 * 1024
"""Bytes of one event's content, as JSON without spaces, in any room.

An event may have 65,536 bytes (client-server API, "Size limits"). Encrypted, 4 bytes are made of 3: measured against
Synapse with short ids, 48,390 bytes of content are the most that fit. From these go 2 KiB for fields added later, 1,300
for ids of 255 bytes in the envelope and the payload, and 500 for the copy of `m.relates_to` that stands outside.
A room that is not encrypted could take 60 KiB, but may be encrypted by the time that the event is sent.
"""

_SMALLEST_ROOM: Final = 2048
"""Bytes of text and HTML in an event below which a block of the smallest cut need not fit."""

_SMALLEST_CUT: Final = 64

_DEEPEST_CUT: Final = 4
"""Cuts within cuts after which structure is given up: each costs another parse, and lists nest."""

_FENCE = re.compile(r"( {0,3})(`{3,}|~{3,})")
_ITEM_MARKER = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)])")
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]*_]*\s|[。！？]")
_GRAPHEME_SEARCH: Final = 256
_ZWJ: Final = "\u200d"
_FLAG_LETTERS: Final = "".join(map(chr, range(0x1F1E6, 0x1F200)))
"""Regional indicators: two of them make a flag."""


def reply_contents(
    markdown: str,
    *,
    reply_to: str,
    asker: str | None,
    thread_root: str | None,
    budget: int = EVENT_BUDGET,
    msgtype: Literal["m.text", "m.notice"] = "m.text",
) -> list[Content]:
    """Make the contents of the events that carry a reply, in the order in which they are to be sent.

    `reply_to` is the event that is answered, `asker` who is rung by it, `thread_root` the thread that it stands in. The
    bodies, joined, are the reply (but for fences opened again, headers repeated, and newlines at the cuts).
    Takes about 1.5 µs a code point; never ask for an empty reply.

    Raises `ValueError` when nothing is left of the reply once control characters and white space are gone, or when the
    budget leaves less than 2 KiB for the text.
    """
    text = clean_reply(markdown)
    if not text.strip():
        raise ValueError("the reply is empty: send a notice from bot.texts instead of an empty message")

    def frame(*, first: bool) -> Content:
        return _frame(reply_to, asker if first else None, thread_root, msgtype, first=first)

    room = budget - max(_measure(_fill(frame(first=one), "", "")) for one in (True, False))
    if room < _SMALLEST_ROOM:
        raise ValueError(f"a budget of {budget} bytes leaves {room} for the text: raise it by {_SMALLEST_ROOM - room}")
    parts = _pack(parse_blocks(text), room)
    return [_fill(frame(first=number == 0), *part) for number, part in enumerate(parts)]


def _frame(reply_to: str, asker: str | None, thread_root: str | None, msgtype: str, *, first: bool) -> Content:
    """All of a content but its text. Relations: client-server API, "Rich replies" and "Threading"."""
    mentions: Content = {"user_ids": [asker]} if asker else {}
    frame: Content = {"msgtype": msgtype, "m.mentions": mentions}
    reply: Content = {"m.in_reply_to": {"event_id": reply_to}}
    if thread_root is not None:
        # The ids of our own earlier parts are not known yet, so the message answered is the newest that can be named.
        frame["m.relates_to"] = {
            "rel_type": "m.thread",
            "event_id": thread_root,
            "is_falling_back": not first,
            **reply,
        }
    elif first:
        frame["m.relates_to"] = reply
    return frame


def _fill(frame: Content, body: str, formatted: str | None) -> Content:
    content: Content = {**frame, "body": body}
    if formatted is not None:
        content["format"] = "org.matrix.custom.html"
        content["formatted_body"] = formatted
    return content


def _measure(value: JSON) -> int:
    """Bytes of `value` as JSON."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def _measure_text(text: str) -> int:
    """Bytes of `text` inside a JSON string, its quotes not counted: additive over concatenation."""
    return _measure(text) - 2


def _weigh(block: Block) -> tuple[int, int]:
    """Bytes of a block's text, with the newline that parts it from the next, and of its HTML."""
    return _measure_text(block.text) + 2, _measure_text(block.html)


def _pack(blocks: Iterable[Block], room: int) -> Iterator[tuple[str, str | None]]:
    """Fill one event after the other; yields body and HTML of each."""
    taken: list[Block] = []
    text_size = html_size = 0
    for block in _cut_to_fit(blocks, room):
        more_text, more_html = _weigh(block)
        rich = not (block.plain and all(one.plain for one in taken))
        full = text_size + more_text + rich * (html_size + more_html) > room
        if taken and (full or block.goes_on):
            yield from _close(taken)
            taken, text_size, html_size = [], 0, 0
        taken.append(block)
        text_size += more_text
        html_size += more_html
    yield from _close(taken)


def _close(blocks: Sequence[Block]) -> Iterator[tuple[str, str | None]]:
    body = "\n".join(block.text for block in blocks).strip("\n")
    if body.strip():
        yield body, join_html(blocks)


def _cut_to_fit(blocks: Iterable[Block], room: int, depth: int = 0) -> Iterator[Block]:
    """Yield blocks that each fit an event of their own. `depth` counts how often they were cut already."""
    for block in blocks:
        text_size, html_size = _weigh(block)
        weight = text_size if block.plain else text_size + html_size
        if weight <= room:
            yield block
            continue
        # HTML grows with its text only roughly: aim a little low, and what is still too large is cut again.
        limit = max(_SMALLEST_CUT, text_size * room // weight * 9 // 10)
        cut = _cut if depth < _DEEPEST_CUT else _cut_text
        for number, text in enumerate(cut(block, limit)):
            yield from _cut_to_fit(_parse_piece(block, text, number), room, depth + 1)


def _parse_piece(block: Block, text: str, number: int) -> list[Block]:
    """Parse piece `number` of a block. What follows the first piece starts an event, but not the blocks of a list."""
    goes_on = block.goes_on or (number > 0 and not block.kind.endswith("_list"))
    if block.kind == OPAQUE:
        return [replace(block, text=text + "\n", goes_on=goes_on)]
    # A blank line after each, so that the next one can't run into it.
    first, *others = (replace(piece, text=piece.text.rstrip("\n") + "\n") for piece in parse_blocks(text))
    return [replace(first, goes_on=goes_on), *others]


def _cut(block: Block, limit: int) -> list[str]:
    cut = _CUTS.get(block.kind)
    pieces = cut(block.text.strip("\n"), limit) if cut else None
    return pieces or _cut_text(block, limit)


def _cut_fence(text: str, limit: int) -> list[str] | None:
    opening, *lines = text.split("\n")
    match = _FENCE.match(opening)
    if match is None:
        return None
    indent, marker = match.groups()
    if lines and re.fullmatch(rf" {{0,3}}{marker}{marker[0]}*[ \t]*", lines[-1]):
        lines.pop()
    closing = indent + marker
    inside = limit - _measure_text(f"{opening}\n\n{closing}")
    if inside < limit // 2:
        return None
    short = (piece for line in lines for piece in _cut_line(line, inside))
    return ["\n".join([opening, *group, closing]) for group in _group(short, inside)]


def _cut_table(text: str, limit: int) -> list[str] | None:
    header, delimiter, *rows = text.split("\n")
    inside = limit - _measure_text(f"{header}\n{delimiter}\n")
    if inside < limit // 2 or any(_measure_text(row) > inside for row in rows):
        return None
    return ["\n".join([header, delimiter, *group]) for group in _group(rows, inside)]


def _cut_list(text: str, limit: int) -> list[str] | None:
    items = list_items(text)
    if len(items) > 1:
        return ["\n".join(group) for group in _group(items, limit)]
    return _open_item(text)


def _open_item(item: str) -> list[str] | None:
    """Set the blocks of one item free, the first one alone keeping the item's marker."""
    match = _ITEM_MARKER.match(item)
    if match is None:
        return None
    marker, rest = match.group(), item[match.end() :]
    width = len(marker) + min(4, max(1, len(rest) - len(rest.lstrip(" "))))
    inner = parse_blocks(re.sub(rf"^ {{1,{width}}}", "", rest, flags=re.MULTILINE))
    if inner and inner[0].kind == "paragraph":
        texts = ["{} {}".format(marker, inner[0].text.strip("\n")), *(block.text for block in inner[1:])]
    else:
        texts = [marker, *(block.text for block in inner)]
    return texts if len(texts) > 1 else None


def _group(lines: Iterable[str], limit: int) -> Iterator[list[str]]:
    """Put consecutive lines together while they fit; one that is too large stands alone."""
    group: list[str] = []
    size = 0
    for line in lines:
        more = _measure_text(line) + 2
        if group and size + more > limit:
            yield group
            group, size = [], 0
        group.append(line)
        size += more
    if group:
        yield group


def _cut_line(line: str, limit: int) -> Iterator[str]:
    """Cut one line of code between characters; nothing of it is dropped."""
    start = 0
    while start < len(line):
        end = start + _longest_prefix(line[start : start + limit], limit)
        if end < len(line):
            end = _grapheme_border(line, start, end)
        yield line[start:end]
        start = end
    if not line:
        yield line


def _cut_text(block: Block, limit: int) -> list[str]:
    """Cut at the best place in the second half of what fits. Newlines at a cut are dropped."""
    text = block.text
    pieces: list[str] = []
    start = 0
    while start < len(text):
        window = text[start : start + limit]
        length = _longest_prefix(window, limit)
        if start + length < len(text):
            length = _best_break(window[:length]) or _grapheme_border(text, start, start + length) - start
        piece = window[:length].strip("\n")
        start += length
        if piece.strip():
            pieces.append(piece)
    return pieces


def _best_break(window: str) -> int | None:
    """Where to cut a window of text: after a blank line, a line, a sentence or a word."""
    half = len(window) // 2
    for separator in ("\n\n", "\n"):
        found = window.rfind(separator, half)
        if found > 0:
            return found + len(separator)
    ends = [match.end() for match in _SENTENCE_END.finditer(window, half)]
    if ends:
        return ends[-1]
    found = max(window.rfind(space) for space in (" ", "\t", "\n"))
    return found + 1 if found > 0 else None


def _longest_prefix(window: str, limit: int) -> int:
    """Code points of `window` that fit, at least one; a code point has at least a byte, so `limit` are enough."""
    if _measure_text(window) <= limit:
        return len(window)
    low, high = 1, len(window)
    while high - low > 1:
        middle = (low + high) // 2
        if _measure_text(window[:middle]) <= limit:
            low = middle
        else:
            high = middle
    return low


def _grapheme_border(text: str, start: int, end: int) -> int:
    """The last place up to `end` that does not part what people see as one character; `end` if there is none near."""
    for place in range(end, max(start, end - _GRAPHEME_SEARCH), -1):
        if not _is_joined(text, start, place):
            return place
    return end


def _is_joined(text: str, start: int, place: int) -> bool:
    """Whether the code points on both sides of `place` show as one (a short form of UAX #29), seen from `start`."""
    before, after = text[place - 1], text[place]
    if _ZWJ in (before, after) or unicodedata.category(after).startswith("M"):
        return True
    if "\U0001f3fb" <= after <= "\U0001f3ff" or "\U000e0020" <= after <= "\U000e007f":
        return True
    return after in _FLAG_LETTERS and _flag_letters_at_end(text[start:place]) % 2 == 1


def _flag_letters_at_end(text: str) -> int:
    return len(text) - len(text.rstrip(_FLAG_LETTERS))


_CUTS: Final[dict[str, Callable[[str, int], list[str] | None]]] = {
    "fence": _cut_fence,
    "table": _cut_table,
    "bullet_list": _cut_list,
    "ordered_list": _cut_list,
}
