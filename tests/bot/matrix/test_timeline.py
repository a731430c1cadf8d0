"""What counts as something said to the bot, and what it says, from raw events alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from bot.matrix.model import DELIVERY_ID_FIELD, Edit, Redaction, RoomMessage
from bot.matrix.timeline import Reader, own_arrival
from tests.bot.matrix.fake import message

ROOM = "!room:fake"
BOT = "@musher:fake"
QUOTE = "> <@bob:fake> what now?\n> really\n\nThis."


def read(event: dict[str, Any], own_name: str | None = None) -> RoomMessage | Edit | Redaction | None:
    return Reader(ROOM, BOT, own_name).read(event)


def said(body: str, **content: object) -> RoomMessage:
    message_ = read(message(1, content={"msgtype": "m.text", "body": body} | content), "Rex the Dog")
    assert isinstance(message_, RoomMessage)
    return message_


def test_a_message_is_read_whole() -> None:
    assert read(message(7)) == RoomMessage(
        event_id="$message-7",
        room_id=ROOM,
        sender="@alice:fake",
        body="message 7",
        origin_ms=1_700_000_000_007,
        msgtype="m.text",
    )


@pytest.mark.parametrize(
    "event",
    [
        message(1, sender=BOT),
        message(1, content={"msgtype": "m.notice", "body": "x"}),
        message(1, content={"msgtype": "m.server_notice", "body": "x"}),
        message(1, content={}),
        message(1, unsigned={"redacted_because": {}}),
        message(1, state_key=""),
        message(1, type="m.reaction"),
        message(1, type="m.room.encrypted"),
        message(1, content={"msgtype": "m.text", "body": "  \n "}),
    ],
)
def test_what_is_no_trigger_is_passed_over(event: dict[str, Any]) -> None:
    assert read(event) is None


@pytest.mark.parametrize("kind", ["m.room.message", "m.room.encrypted"])
def test_what_another_musher_says_is_passed_over(kind: str) -> None:
    content = {"msgtype": "m.text", "body": "what do you mean?", DELIVERY_ID_FIELD: "musher-1-0"}
    with capture_logs() as logs:
        assert read(message(1, type=kind, content=content)) is None
    assert not logs


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("m.sticker", "sticker_passed_over"),
        ("m.poll.start", "poll_passed_over"),
        ("org.matrix.msc3381.poll.start", "poll_passed_over"),
    ],
)
def test_what_is_said_without_words_stands_in_the_log(kind: str, told: str) -> None:
    with capture_logs() as logs:
        assert read(message(1, type=kind)) is None
    assert [(line["event"], line["log_level"], line["event_id"]) for line in logs] == [(told, "info", "$message-1")]


def test_an_edit_carries_the_new_text_and_the_old_id() -> None:
    content = {
        "msgtype": "m.text",
        "body": "* better",
        "m.new_content": {"msgtype": "m.text", "body": "better"},
        "m.relates_to": {"rel_type": "m.replace", "event_id": "$old"},
    }
    assert read(message(1, content=content)) == Edit("$old", ROOM, "@alice:fake", "better")


def test_a_redaction_is_read_from_both_places_that_versions_put_it() -> None:
    taken_back = Redaction("$old", ROOM, "@alice:fake")
    assert read(message(1, type="m.room.redaction", content={}, redacts="$old")) == taken_back
    assert read(message(1, type="m.room.redaction", content={"redacts": "$old"})) == taken_back


def test_a_thread_is_told_from_a_reply() -> None:
    reply = {"m.in_reply_to": {"event_id": "$asked"}}
    thread = {"rel_type": "m.thread", "event_id": "$root"} | reply
    plain = said("x", **{"m.relates_to": reply})
    assert (plain.thread_root, plain.reply_to) == (None, "$asked")
    fallback = said("x", **{"m.relates_to": thread | {"is_falling_back": True}})
    assert (fallback.thread_root, fallback.reply_to) == ("$root", None)
    within = said("x", **{"m.relates_to": thread})
    assert (within.thread_root, within.reply_to) == ("$root", "$asked")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (QUOTE, "This."),
        ("> * <@bob:fake> shrugs\n\nThis.\n\n> not a fallback", "This.\n\n> not a fallback"),
        ("> to be or not\n\nThis.", "> to be or not\n\nThis."),
        ("> <@bob:fake> nothing else", "> <@bob:fake> nothing else"),
    ],
)
def test_a_reply_is_read_without_its_quotation(body: str, text: str) -> None:
    assert said(body, **{"m.relates_to": {"m.in_reply_to": {"event_id": "$asked"}}}).body == text


def test_a_quotation_that_is_no_reply_stays() -> None:
    assert said(QUOTE).body == QUOTE


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"msgtype": "m.image", "body": "cat.png"}, "[image: cat.png]"),
        ({"msgtype": "m.image", "body": "Look!", "filename": "cat.png"}, "[image: cat.png] Look!"),
        ({"msgtype": "m.file", "body": "a\nb.txt", "filename": "a\nb.txt"}, "[file: a b.txt]"),
        ({"msgtype": "m.emote", "body": "waves"}, "waves"),
        ({"msgtype": "org.example.poll", "body": "Pizza?"}, "Pizza?"),
        ({"msgtype": "m.text", "body": "half \ud83d of a pair"}, "half \ufffd of a pair"),
    ],
)
def test_the_text_of_other_kinds(content: dict[str, Any], text: str) -> None:
    read_ = read(message(1, content=content))
    assert isinstance(read_, RoomMessage)
    assert read_.body == text


@pytest.mark.parametrize(
    ("body", "mentions", "is_mention"),
    [
        ("hello", {"user_ids": [BOT]}, True),
        ("hello", {"user_ids": ["@bob:fake"], "room": True}, False),
        ("musher, hello", {}, False),
        ("musher, hello", {"user_ids": "musher"}, False),
        ("musher, hello", None, True),
        ("hello Musher", None, True),
        (f"hello {BOT}!", None, True),
        ("the mushers are here", None, False),
        ("good boy, rex the dog.", None, True),
        ("rex", None, False),
    ],
)
def test_who_is_mentioned(body: str, mentions: object, is_mention: bool) -> None:
    content = {} if mentions is None else {"m.mentions": mentions}
    assert said(body, **content).mentions_me is is_mention


@pytest.mark.parametrize(
    "event",
    [
        message(1, event_id=7),
        message(1, event_id="$" + "x" * 300),
        message(1, sender="@\ud83d:fake"),
        message(1, sender=None),
        message(1, origin_server_ts="now"),
        message(1, origin_server_ts=True),
        message(1, origin_server_ts=-1),
        message(1, content=["body"]),
        message(1, content={"msgtype": ["m.text"], "body": "x"}),
        message(1, content={"body": "x"}),
        message(1, content={"msgtype": "m.text", "body": {}}),
        message(1, content={"msgtype": "m.text", "body": "* x", "m.relates_to": {"rel_type": "m.replace"}}),
        message(1, type="m.room.redaction", content={}, redacts=4),
    ],
)
def test_a_malformed_event_is_logged_without_its_text(event: dict[str, Any]) -> None:
    with capture_logs() as logs:
        assert read(event) is None
    assert [line["event"] for line in logs] == ["event_passed_over"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["m.replace", "m.text", BOT]),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=5,
)
contents = st.fixed_dictionaries(
    {},
    optional={
        "msgtype": json_values | st.sampled_from(["m.text", "m.image", "m.notice"]),
        "body": json_values,
        "filename": json_values,
        "membership": json_values | st.sampled_from(["join", "invite", "leave"]),
        "redacts": json_values,
        "m.mentions": json_values | st.fixed_dictionaries({"user_ids": json_values}),
        "m.new_content": json_values | st.fixed_dictionaries({"body": json_values, "msgtype": json_values}),
        "m.relates_to": json_values
        | st.fixed_dictionaries(
            {},
            optional={
                "rel_type": json_values | st.just("m.thread"),
                "event_id": json_values,
                "m.in_reply_to": json_values | st.fixed_dictionaries({"event_id": json_values}),
            },
        ),
    },
)
events = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["m.room.message", "m.room.redaction", "m.room.encrypted", "m.room.member"])
        | json_values
    },
    optional={
        "event_id": st.just("$id") | json_values,
        "sender": st.just("@alice:fake") | json_values,
        "state_key": st.just(BOT) | json_values,
        "origin_server_ts": st.integers(0, 9) | json_values,
        "content": contents | json_values,
        "unsigned": json_values | st.fixed_dictionaries({"prev_content": contents | json_values}),
        "redacts": json_values,
    },
)


@given(st.lists(events, max_size=5))
def test_no_event_that_a_server_may_send_is_too_strange(strange: list[dict[str, Any]]) -> None:
    reader = Reader(ROOM, BOT, "Rex")
    for event in strange:
        meaning = reader.read(event)
        if isinstance(meaning, RoomMessage):
            assert f"{meaning.body}{meaning.event_id}{meaning.sender}{meaning.thread_root}".encode()
    arrival, _ = own_arrival(strange, BOT)
    assert arrival is None or 0 <= arrival < len(strange)


def member(membership: str, before: str | None = None, user: str = BOT) -> dict[str, Any]:
    unsigned = {"prev_content": {"membership": before}, "replaces_state": "$before"} if before else {}
    return {"type": "m.room.member", "state_key": user, "content": {"membership": membership}, "unsigned": unsigned}


@pytest.mark.parametrize(
    ("events_", "arrival"),
    [
        ([message(1), message(2)], (None, False)),
        ([message(1), member("invite"), message(2), member("join", "invite"), message(3)], (1, False)),
        ([message(1), member("join", "invite"), message(2)], (None, True)),
        ([message(1), member("join"), message(2)], (1, False)),
        ([message(1), member("join", "leave"), message(2)], (1, False)),
        ([message(1), member("join", "join"), message(2)], (None, False)),
        ([message(1), member("join", user="@alice:fake"), message(2)], (None, False)),
        (
            [
                *(member("join", "invite"), message(1), member("leave", "join"), message(2)),
                *(member("invite", "leave"), member("join", "invite"), member("join", "join"), message(3)),
            ],
            (4, False),
        ),
    ],
)
def test_a_stay_begins_with_the_invitation(events_: list[dict[str, Any]], arrival: tuple[int | None, bool]) -> None:
    assert own_arrival(events_, BOT) == arrival


def test_a_joining_over_an_unknown_state_hides_no_message() -> None:
    rejoin = member("join") | {"unsigned": {"replaces_state": "$gone"}}
    assert own_arrival([message(1), rejoin], BOT) == (None, False)
