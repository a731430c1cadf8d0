"""What a model writes becomes HTML that Matrix permits, and nothing of it vanishes from view."""

from __future__ import annotations

import json
import re
import textwrap
import time
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.matrix.render import (
    HTML_INPUT_LIMIT,
    HTML_LINE_LIMIT,
    HTML_TOKEN_LIMIT,
    clean_reply,
    parse_blocks,
    render_html,
)

BARE = (
    "del h1 h2 h3 h4 h5 h6 blockquote p ul sup sub li b i u strong em s hr br table thead tbody tr th td caption pre "
    "details summary"
)
PERMITTED: dict[str, set[str]] = {
    **{tag: set() for tag in BARE.split()},
    "a": {"target", "href"},
    "img": {"width", "height", "alt", "title", "src"},
    "ol": {"start"},
    "code": {"class"},
    "span": {"data-mx-bg-color", "data-mx-color", "data-mx-spoiler", "data-mx-maths"},
    "div": {"data-mx-maths"},
}
"""Client-server API v1.18, "m.room.message msgtypes"."""

VOID = {"br", "hr", "img"}

SNIPPETS = [
    *(
        "**bold** ",
        "*",
        "_",
        "~~",
        "`code`",
        "``",
        "```py\n",
        "```\n",
        "~~~\n",
        "> ",
        "- ",
        "1. ",
        "    ",
        "# ",
        "---\n",
    ),
    *("|a|b|\n|-|-|\n", "|1|2|\n", "[x](https://e.org)", "[x](javascript:alert(1))", "![i](mxc://e/i)", "\n", "\n\n"),
    *(
        "![i](https://e.org/i.png)",
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<b onclick=x>",
        "<br>",
    ),
    *("[", "]", "(", ")", "![", "<", ">", "&", "&lt;", "\\", "@room ", "@bob:e.org ", "[r]: javascript:x\n", "<!-- "),
    *(
        "<mx-reply>",
        "<a href='data:text/html,x'>",
        "é",
        "👩‍🚀",
        "\x00",
        "\x1b[31m",
        "\r\n",
        "\u2028",
        "\ud800",
        "word ",
    ),
]
MARKDOWN = st.lists(st.one_of(st.sampled_from(SNIPPETS), st.text(max_size=8)), max_size=40).map("".join)


class Inspector(HTMLParser):
    """Fails on any tag, attribute, link or image that the specification does not permit."""

    def __init__(self) -> None:
        super().__init__()
        self.deepest = 0
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in PERMITTED
        for name, value in attrs:
            assert name in PERMITTED[tag]
            assert value is not None
            assert name != "href" or re.match(r"(?i)(https?|ftp|mailto|magnet):", value)
            assert name != "src" or value.startswith("mxc://")
            assert name != "class" or all(one.startswith("language-") for one in value.split())
        if tag not in VOID:
            self.open.append(tag)
            self.deepest = max(self.deepest, len(self.open))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_comment(self, data: str) -> None:
        pytest.fail(f"comment {data!r}")


def inspect(html: str | None) -> None:
    inspector = Inspector()
    inspector.feed(html or "")
    inspector.close()
    assert not inspector.open
    assert inspector.deepest <= 100


def test_control_characters_and_lone_surrogates_are_removed_and_line_ends_become_newlines() -> None:
    assert clean_reply("a\x00b\x1b[1m\x7f\x85\ud800c\td\r\ne\rf\n") == "ab[1mc\td\ne\nf\n"


@given(st.text(st.characters(), max_size=50))
def test_a_cleaned_reply_always_becomes_json_in_utf_8(text: str) -> None:
    cleaned = clean_reply(text)
    json.dumps(cleaned, ensure_ascii=False).encode()
    assert not [one for one in cleaned if unicodedata.category(one) in {"Cc", "Cs"} and one not in "\n\t"]
    assert clean_reply(cleaned) == cleaned


@pytest.mark.parametrize(
    "text",
    ["Hello", "two\nlines", "one\n\ntwo paragraphs", "@room \"quoted\" & 'so' <", "[INFO]: started", "", " \n", "a &c"],
)
def test_text_without_markup_has_no_html(text: str) -> None:
    assert render_html(text) is None


@pytest.mark.parametrize(
    ("markdown", "html"),
    [
        ("a **b** *c* ~~d~~ `e`", "a <strong>b</strong> <em>c</em> <s>d</s> <code>e</code>"),
        ("*a*\nb", "<em>a</em><br>\nb"),
        ("*a*\n\nb", "<p><em>a</em></p>\n<p>b</p>"),
        ("```py\na<b\n```", '<pre><code class="language-py">a&lt;b\n</code></pre>'),
        ("~~~ c++\na<b", '<pre><code class="language-c++">a&lt;b</code></pre>'),
        ("```\n```", "<pre><code></code></pre>"),
        ("3. x", '<ol start="3">\n<li>x</li>\n</ol>'),
        ("[x](https://e.org 'title')", '<a href="https://e.org">x</a>'),
        ("\\*literal\\*", "*literal*"),
        ("*a*<br>b", "<em>a</em><br>b"),
        ("![cat](mxc://e.org/cat)", '<img src="mxc://e.org/cat" alt="cat">'),
        ("![cat](https://e.org/cat.png)", '<a href="https://e.org/cat.png">cat</a>'),
        ("[![build](https://e.org/b.png)](https://e.org/ci)", '<a href="https://e.org/ci">build</a>'),
    ],
)
def test_markup_becomes_permitted_html(markdown: str, html: str) -> None:
    assert render_html(markdown) == html


@pytest.mark.parametrize(
    "opening", ["```py title=secret.py", '```py evil" x=1', "```src/secret.py", "~~~ hello world", "```{r}"]
)
@pytest.mark.parametrize(("before", "after"), [("", ""), ("", "\n"), ("> ", "\n> {}")])
def test_what_follows_a_fence_and_is_no_language_shows(opening: str, before: str, after: str) -> None:
    html = render_html(f"{before}{opening}\n{before}a<b" + after.format(opening[:3]))
    assert html is not None
    assert f"<pre><code>{opening}\na&lt;b\n{opening[:3]}\n</code></pre>" in html


def test_a_fence_without_code_shows() -> None:
    assert render_html("~~~ hello\n") == "<pre><code>~~~ hello\n~~~\n</code></pre>"


@pytest.mark.parametrize("text", ["", " "])
def test_a_link_without_a_text_shows_where_it_leads(text: str) -> None:
    assert render_html(f"see [{text}](https://e.org/?a&b) now") == (
        f'see <a href="https://e.org/?a&amp;b">https://e.org/?a&amp;b{text}</a> now'
    )


def test_a_table_keeps_its_cells_and_loses_its_styles() -> None:
    html = render_html("|a|b|\n|:-|-:|\n|1|**2**|")
    assert html is not None
    assert "<td><strong>2</strong></td>" in html
    assert "style" not in html
    assert "\n" not in html


@pytest.mark.parametrize(
    ("rows", "is_table"),
    [
        ("| `ps | grep x` | finds x |", False),
        ("|1|2|\n|1|2|3", False),
        ("1|2|3", False),
        ("|1|2| |", True),
        ("|1|a\\|b|", True),
        ("|1|", True),
    ],
)
@pytest.mark.parametrize("before", ["", "> "])
def test_a_table_with_more_cells_than_its_header_shows_as_its_source(rows: str, is_table: bool, before: str) -> None:
    source = f"|a|b|\n|-|-|\n{rows}"
    html = render_html(textwrap.indent(source, before))
    assert html is not None
    assert ("<table>" in html) is is_table
    assert is_table or f"<pre><code>{source}" in html


@pytest.mark.parametrize(
    "markdown",
    ["**x** List<String>", "**x** <script>alert(1)</script>", "# x\n<!-- c -->", "**x** <mx-reply>q</mx-reply>"],
)
def test_raw_html_shows_as_the_text_it_is(markdown: str) -> None:
    html = render_html(markdown)
    assert html is not None
    assert "&lt;" in html
    inspect(html)


@pytest.mark.parametrize("target", ["javascript:alert(1)", "data:text/html,x", "src/turn.py", "//e.org", "vbscript:x"])
def test_a_link_that_clients_may_not_follow_shows_as_its_source(target: str) -> None:
    assert render_html(f"**x** [y]({target})") == f"<strong>x</strong> [y]({target})"


def test_what_is_nested_too_deep_shows_as_its_source() -> None:
    markdown = "\n".join("  " * depth + f"- item {depth}" for depth in range(40))
    html = render_html(markdown)
    assert html is not None
    assert html.startswith("<pre><code>- item 0")
    assert "item 39" in html


def test_emphasis_nested_beyond_100_levels_shows_as_its_source() -> None:
    html = render_html("*a **b " * 60 + "b** a*" * 60)
    assert html is not None
    assert html.startswith("<pre><code>*a **b")


@pytest.mark.parametrize(
    "text",
    ["**b** " * HTML_INPUT_LIMIT, "**b**\n" * HTML_LINE_LIMIT, "- b\n" * (HTML_TOKEN_LIMIT // 4), "> " * 9 + "**x**"],
)
def test_a_reply_that_would_cost_too_much_has_no_html(text: str) -> None:
    assert render_html(text) is None


@pytest.mark.parametrize(
    "text",
    [
        *(
            "[" * 50_000,
            "![" * 50_000,
            "[a][" * 50_000,
            "> " * 50_000,
            "*" * 100_000,
            "*a **b " * 20_000,
            "`a " * 50_000,
        ),
        *("- " * 50_000 + "x", "1. " * 50_000, "<![CDATA[" * 20_000, "![" * 300 + "a" + "](x)" * 300, "&" * 100_000),
        *(
            "> " * 8 + "a\n" + "b\n" * 8_000,
            "|" * 1000 + "\n" + "|-" * 1000 + "\n" + "|x\n" * 4_000,
            "[x]: y\n" * 15_000,
        ),
    ],
)
def test_hostile_markdown_stays_fast_and_permitted(text: str) -> None:
    began = time.thread_time()
    html = render_html(text)
    assert time.thread_time() - began < 5
    inspect(html)


@settings(deadline=None)
@given(MARKDOWN)
def test_any_markdown_gives_only_permitted_html(markdown: str) -> None:
    inspect(render_html(markdown))


@settings(deadline=None)
@given(MARKDOWN)
def test_the_texts_of_the_blocks_are_the_reply(markdown: str) -> None:
    cleaned = clean_reply(markdown)
    assert "\n".join(block.text for block in parse_blocks(cleaned)).strip() == cleaned.strip()
