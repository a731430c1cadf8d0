"""A reply of any size arrives whole, in order, in events that a homeserver accepts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.matrix.render import HTML_INPUT_LIMIT, clean_reply
from bot.matrix.split import EVENT_BUDGET, Content, reply_contents
from tests.bot.matrix.test_render import MARKDOWN, inspect

SMALL = 2600
BUDGETS = [EVENT_BUDGET, SMALL]


def split(markdown: str, budget: int = EVENT_BUDGET, thread_root: str | None = None) -> list[Content]:
    contents = reply_contents(markdown, reply_to="$asked", asker="@alice:e.org", thread_root=thread_root, budget=budget)
    for content in contents:
        assert size(content) <= budget
        assert body(content).strip()
        inspect(cast("str | None", content.get("formatted_body")))
    return contents


def size(content: Content) -> int:
    return len(json.dumps(content, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode())


def body(content: Content) -> str:
    return cast("str", content["body"])


def html(content: Content) -> str:
    return cast("str", content["formatted_body"])


def dense(texts: Iterable[str]) -> str:
    return "".join("".join(texts).split())


def is_within(part: str, whole: str) -> bool:
    """Whether the characters of `part` stand in `whole` in the same order."""
    rest = iter(whole)
    return all(character in rest for character in part)


def test_a_short_reply_is_one_event_that_answers_and_rings_the_asker() -> None:
    assert split("It **passed**.") == [
        {
            "msgtype": "m.text",
            "body": "It **passed**.",
            "format": "org.matrix.custom.html",
            "formatted_body": "It <strong>passed</strong>.",
            "m.mentions": {"user_ids": ["@alice:e.org"]},
            "m.relates_to": {"m.in_reply_to": {"event_id": "$asked"}},
        }
    ]


def test_a_notice_without_asker_rings_nobody_even_if_it_says_room() -> None:
    (content,) = reply_contents("@room hi", reply_to="$a", asker=None, thread_root=None, msgtype="m.notice")
    assert content == {
        "msgtype": "m.notice",
        "body": "@room hi",
        "m.mentions": {},
        "m.relates_to": {"m.in_reply_to": {"event_id": "$a"}},
    }


def test_only_the_first_of_many_parts_answers_and_rings() -> None:
    first, *later = split("word " * 40_000)
    assert first["m.mentions"] == {"user_ids": ["@alice:e.org"]}
    assert first["m.relates_to"] == {"m.in_reply_to": {"event_id": "$asked"}}
    assert later
    assert all(part["m.mentions"] == {} and "m.relates_to" not in part for part in later)


def test_every_part_of_a_reply_in_a_thread_stays_in_the_thread() -> None:
    relations = [part["m.relates_to"] for part in split("word " * 40_000, thread_root="$root")]
    thread = {"rel_type": "m.thread", "event_id": "$root", "m.in_reply_to": {"event_id": "$asked"}}
    assert relations[0] == {**thread, "is_falling_back": False}
    assert relations[1:] == [{**thread, "is_falling_back": True}] * (len(relations) - 1)


@pytest.mark.parametrize("text", ["", " \n\t", "\x00\x1b", "\ud800"])
def test_an_empty_reply_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the reply is empty"):
        split(text)


def test_a_budget_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="a budget of 1000 bytes leaves"):
        split("x", 1000)


SECTION = (
    "## Step\n\nThe **gate** `lint` of [42](https://e.org) passed, says Zoë.\n\n- one\n- two\n\n"
    "```py\nx = 1\n\ny = 2\n```\n\n"
)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_reply_of_200_kb_arrives_in_order_with_its_code_whole(budget: int) -> None:
    reply = SECTION * (200_000 // len(SECTION))
    contents = split(reply, budget)
    assert dense(map(body, contents)) == dense([reply])
    assert all(body(content).count("```") % 2 == 0 for content in contents)


def cpu_seconds(reply: str, budget: int) -> float:
    began = time.thread_time()
    reply_contents(reply, reply_to="$asked", asker=None, thread_root=None, budget=budget)
    return time.thread_time() - began


def test_the_cost_of_a_reply_grows_with_its_length_only() -> None:
    short, long = SECTION * (20_000 // len(SECTION)), SECTION * (200_000 // len(SECTION))
    # Ten times the length: were it to grow with the square, it would be a hundred times the cost.
    long_cost, short_cost = (min(cpu_seconds(text, EVENT_BUDGET) for _ in range(3)) for text in (long, short))
    assert long_cost < 40 * short_cost


def test_plain_prose_fills_an_event_without_html() -> None:
    contents = split("Lorem ipsum dolor sit amet, so it goes. " * 3000)
    assert not any("format" in content for content in contents)
    assert len(contents) == 4


def test_code_that_fits_an_event_is_never_cut() -> None:
    code = "```py\n" + "x = 1\n" * 250 + "```"
    contents = split(f"{'word ' * 300}\n\n{code}\n\nend", 4000)
    assert any(code in body(content) for content in contents)


def test_code_that_is_too_long_is_cut_between_lines_under_its_language() -> None:
    lines = [f"print({number})  # <{'#' * (number % 9)}" for number in range(900)]
    contents = split("  ~~~~py\n" + "\n".join(lines) + "\n\n~~~~\nend", SMALL)
    found: list[str] = []
    for content in contents:
        opening, *inside = body(content).removesuffix("\nend").rstrip("\n").split("\n")
        assert opening == "  ~~~~py"
        assert inside.pop().strip() == "~~~~"
        assert '<pre><code class="language-py">' in html(content)
        found += inside
    assert found == [*lines, ""]


def test_one_endless_line_of_code_is_cut_and_stays_code() -> None:
    line = "x=' y'" * 5000
    contents = split(f"```\n{line}\n```", SMALL)
    assert "".join(body(content).split("\n")[1] for content in contents) == line
    assert all(html(content).startswith("<pre><code>") for content in contents)


def test_a_fence_that_the_model_never_closed_loses_nothing() -> None:
    lines = [f"line {number}" for number in range(1000)]
    contents = split("```\n" + "\n".join(lines), SMALL)
    assert [line for content in contents for line in body(content).split("\n")[1:-1]] == lines


def test_a_table_is_cut_between_rows_under_its_header() -> None:
    rows = [f"| {number} | *x* |" for number in range(500)]
    contents = split("| a | b |\n|---|---|\n" + "\n".join(rows), SMALL)
    assert len(contents) > 1
    assert all(body(content).startswith("| a | b |\n|---|---|\n") for content in contents)
    assert all(html(content).startswith("<table>") for content in contents)
    assert [row for content in contents for row in body(content).split("\n")[2:]] == rows


def test_a_list_is_cut_between_its_top_level_items_and_goes_on_counting() -> None:
    items = [f"{number}. item\n    - below\n    - and below" for number in range(1, 200)]
    contents = split("\n".join(items), SMALL)
    assert [item for content in contents for item in body(content).split("\n")] == "\n".join(items).split("\n")
    for content in contents:
        number = body(content).partition(".")[0]
        assert html(content).startswith("<ol>" if number == "1" else f'<ol start="{number}">')


def test_long_code_inside_a_list_item_stays_code() -> None:
    lines = [f"x = {number}" for number in range(600)]
    code = "\n".join(f"   {line}" for line in ["```py", *lines, "```"])
    contents = split(f"1. First:\n\n{code}\n\n2. Then", SMALL)
    assert body(contents[0]).startswith("1. First:")
    assert all('<code class="language-py">' in html(content) for content in contents)
    found = [line for content in contents for line in body(content).split("\n") if line.startswith("x = ")]
    assert found == lines


def test_a_list_item_that_is_one_endless_paragraph_arrives_whole() -> None:
    reply = "- " + "word **bold** " * 800 + "\n- next"
    assert dense(map(body, split(reply, SMALL))) == dense([reply])


def test_a_paragraph_is_cut_after_a_sentence() -> None:
    contents = split("A sentence of some words, no more. " * 500, SMALL)
    assert len(contents) > 1
    assert all(body(content).rstrip().endswith("no more.") for content in contents)


@pytest.mark.parametrize("character", ["👩‍👩‍👧‍👦", "🇩🇪", "👍🏽", "e\u0301\u0323", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "x"])
def test_a_text_without_spaces_is_cut_between_what_people_see_as_characters(character: str) -> None:
    contents = split("a" + character * 3000, SMALL)
    assert len(contents) > 1
    assert body(contents[0]).removeprefix("a").replace(character, "") == ""
    assert all(body(content).replace(character, "") == "" for content in contents[1:])


def test_a_single_endless_character_is_cut_all_the_same() -> None:
    zalgo = "a" + "\u0301" * 20_000
    assert "".join(map(body, split(zalgo, SMALL))) == zalgo


def test_a_reply_too_large_for_html_arrives_whole_as_text() -> None:
    reply = "a **b** line\n" * (HTML_INPUT_LIMIT // 10)
    contents = split(reply)
    assert not any("format" in content for content in contents)
    assert dense(map(body, contents)) == dense([reply])


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(
    "reply",
    [
        *(
            "[" * 50_000,
            "> " * 50_000,
            "*" * 100_000,
            "<" * 100_000,
            "1. " * 50_000 + "x",
            "- " * 8 + "a\n" + "b\n" * 4_000,
        ),
        *("\n".join("  " * depth + "- x" for depth in range(300)), "a" + "\n" * 100_000 + "b", "*a **b " * 20_000),
        *(
            "```" + "x" * 10_000 + "\ny\n```",
            "> **a** b\n" * 3000,
            "    <&>\n" * 4_000,
            "|" * 9000 + "\n" + "|-" * 9000,
        ),
    ],
)
def test_hostile_replies_arrive_whole_and_soon(reply: str, budget: int) -> None:
    assert cpu_seconds(reply, budget) < 20, "such a reply once took minutes"
    contents = split(reply, budget)
    assert dense(map(body, contents)) == dense([reply])


@settings(deadline=None)
@given(MARKDOWN, st.integers(1, 60))
def test_any_reply_fits_and_loses_nothing(markdown: str, times: int) -> None:
    reply = markdown * times
    if not clean_reply(reply).strip():
        return
    assert is_within(dense([clean_reply(reply)]), dense(map(body, split(reply, SMALL))))


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="`~|"), max_size=60), max_size=200), st.sampled_from(BUDGETS))
def test_a_reply_without_code_or_tables_is_the_sum_of_its_parts(lines: list[str], budget: int) -> None:
    reply = clean_reply("\n".join(lines))
    if reply.strip():
        assert dense(map(body, split(reply, budget))) == dense([reply])
