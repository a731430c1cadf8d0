"""The inbox: admitted once, changed until a turn freezes it, settled once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from crdt import Edit, Message, MessageChanged, Store
from tests.crdt.samples import OTHER_ROOM, ROOM, delivery, event, lines, look, message, on_disk

ALICE = "@alice:example.org"


def outcomes(path: Path) -> dict[str, str | None]:
    """What became of each message."""
    return dict(look(path, "SELECT key, outcome FROM inbox"))


async def test_messages_and_cursor_are_admitted_together(path: Path) -> None:
    async with Store.open(path) as store:
        assert await store.read_cursor() is None
        details = '{"thread":"$0"}'
        first, second = message("$1", "one", details=details), message("$2", "two", context=True)
        assert await store.admit([first, second], cursor="s1") == [first, second]
    async with Store.open(path) as store:
        assert await store.read_cursor() == "s1"
        assert await store.waiting(ROOM) == [first, second]
        assert await store.admit([], cursor="s2") == []
        assert await store.read_cursor() == "s2"


async def test_known_keys_are_skipped_even_after_they_are_settled(store: Store) -> None:
    await store.admit([message("$1", "one")])
    assert await store.admit([message("$1", "other"), message("$2"), message("$2")]) == [message("$2")]
    assert [one.text for one in await store.waiting(ROOM)] == ["one", "hello"]
    await store.settle(["$1"], "room gone")
    assert await store.admit([message("$1")]) == []
    assert [one.key for one in await store.waiting(ROOM)] == ["$2"]


async def test_a_message_that_cannot_be_admitted_leaves_the_cursor_where_it_was(store: Store) -> None:
    await store.admit([message("$1")], cursor="s1")
    with pytest.raises(AttributeError):
        await store.admit([message("$2"), Message(None, ROOM, "@a:e.org", "hi")], cursor="s2")  # type: ignore[arg-type]
    assert await store.read_cursor() == "s1"
    assert [one.key for one in await store.waiting(ROOM)] == ["$1"]


async def test_an_admit_without_a_cursor_leaves_it_alone(store: Store) -> None:
    await store.admit([], cursor="s1")
    await store.admit([message("$1")])
    assert await store.read_cursor() == "s1"


async def test_sessions_wait_in_the_order_of_their_oldest_message(store: Store) -> None:
    await store.admit([message("$0", session_id="!context", context=True), message("$1", session_id=OTHER_ROOM)])
    await store.admit([message("$2"), message("$3", session_id=OTHER_ROOM)])
    assert await store.waiting_sessions() == [OTHER_ROOM, ROOM]
    await store.settle(["$1"], "not allowed")
    assert await store.waiting_sessions() == [ROOM, OTHER_ROOM]
    await store.settle(["$2", "$3"], "not allowed")
    assert await store.waiting_sessions() == []
    assert [one.key for one in await store.waiting("!context")] == ["$0"]


async def test_lone_surrogates_in_a_message_are_replaced(store: Store) -> None:
    (new,) = await store.admit([message("$1", "a\ud800b")])
    assert new.text == "a\ufffdb"
    assert await store.waiting(ROOM) == [new]


async def test_an_edit_changes_a_message_until_a_turn_freezes_it(store: Store) -> None:
    await store.admit([message("$1", "one"), message("$2", "two", context=True)])
    await store.admit([], edits=[Edit("$1", ALICE, "ONE"), Edit("$2", ALICE, "TWO"), Edit("$9", ALICE, "none")])
    assert [one.text for one in await store.waiting(ROOM)] == ["ONE", "TWO"]
    await store.begin_turn(ROOM, "$1", "ONE")
    await store.admit([], edits=[Edit("$1", ALICE, "late"), Edit("$2", ALICE, "in time")])
    assert [one.text for one in await store.waiting(ROOM)] == ["ONE", "in time"]


async def test_only_its_sender_edits_a_message(store: Store) -> None:
    await store.admit([message("$1", "one")])
    await store.admit([], edits=[Edit("$1", "@mallory:example.org", "forged")])
    assert [one.text for one in await store.waiting(ROOM)] == ["one"]


async def test_an_edit_in_the_same_sync_as_its_message_counts(store: Store) -> None:
    await store.admit([message("$1", "one")], edits=[Edit("$1", ALICE, "two")])
    assert [one.text for one in await store.waiting(ROOM)] == ["two"]


async def test_a_redacted_message_is_settled_and_its_text_forgotten(path: Path) -> None:
    async with Store.open(path) as store:
        await store.admit([message("$1", "one"), message("$2", "a regretted word"), message("$3", context=True)])
        await store.begin_turn(ROOM, "$1", "one")
        await store.admit([], redactions=["$1", "$2", "$3", "$9"])
        assert [one.key for one in await store.waiting(ROOM)] == ["$1"]
        await store.admit([], edits=[Edit("$2", ALICE, "again")], redactions=["$2"])
    assert outcomes(path) == {"$1": None, "$2": "redacted", "$3": "redacted"}
    assert b"regretted" not in on_disk(path)


async def test_a_turn_is_not_begun_over_a_message_that_changed_since_it_was_read(path: Path) -> None:
    async with Store.open(path) as store:
        await store.append_event(event(1))
        await store.admit([message("$c", context=True), *(message(f"${n}") for n in (1, 2, 3))])
        context, *said = await store.waiting(ROOM)
        for key, change in [
            ("$2", store.admit([], edits=[Edit("$2", ALICE, "better")])),
            ("$1", store.admit([], redactions=["$1"])),
            ("$3", store.settle(["$3"], "room gone")),
        ]:
            await change
            with pytest.raises(MessageChanged, match=re.escape(key)):
                await store.begin_turn(ROOM, key, "hello", said=[one for one in said if one.key == key])
        await store.admit([], redactions=["$c"])
        with pytest.raises(MessageChanged, match=r"\$c"):
            await store.begin_turn(ROOM, "$2", "better", [context])
        (left,) = await store.waiting(ROOM)
        turn = await store.begin_turn(ROOM, left.key, left.text, said=[left])
        assert (turn.lines, turn.attempt) == (lines(1, 1), 1)
        assert len(await store.read_transcript(ROOM)) == 1


async def test_completing_a_turn_settles_its_message_and_those_it_covers(path: Path) -> None:
    async with Store.open(path) as store:
        await store.admit([message("$c", context=True), message("$1"), message("$2"), message("$3")])
        (context,) = [one for one in await store.waiting(ROOM) if one.context]
        turn = await store.begin_turn(
            ROOM, "$1", "hello", [context], [message(f"${name}") for name in (1, 2, "unknown")]
        )
        waiting = await store.waiting(ROOM)
        assert [(one.key, one.turn_key) for one in waiting] == [("$1", "$1"), ("$2", "$1"), ("$3", None)]
        await store.complete_turn(turn, "hi")
        assert [one.key for one in await store.waiting(ROOM)] == ["$3"]
        failing = await store.begin_turn(ROOM, "$3", "hello")
        await store.complete_turn(failing, "The model did not answer.", failed=True)
        assert await store.waiting_sessions() == []
    assert outcomes(path) == {"$c": "context", "$1": "answered", "$2": "covered", "$3": "failed"}
    assert look(path, "SELECT count(*) FROM inbox WHERE text IS NOT NULL OR details IS NOT NULL") == [(0,)]


async def test_a_turn_frozen_before_a_restart_waits_with_its_turn(path: Path) -> None:
    async with Store.open(path) as store:
        await store.admit([message("$1"), message("$2")])
        await store.begin_turn(ROOM, "$1", "hello", said=[message("$1"), message("$2")])
    async with Store.open(path) as store:
        assert [(one.key, one.turn_key) for one in await store.waiting(ROOM)] == [("$1", "$1"), ("$2", "$1")]
        assert await store.waiting_sessions() == [ROOM]


async def test_messages_that_come_during_a_turn_are_not_settled_by_it(store: Store) -> None:
    await store.admit([message("$1")])
    turn = await store.begin_turn(ROOM, "$1", "hello")
    await store.admit([message("$2")])
    await store.begin_turn(ROOM, "$1", "hello", said=[message("$1"), message("$2")])
    await store.complete_turn(turn, "hi")
    assert await store.waiting(ROOM) == [message("$2")]


async def test_the_newest_fifty_messages_wait_as_context(path: Path) -> None:
    async with Store.open(path) as store:
        await store.admit([message("$trigger")])
        await store.admit([message(f"${n}", context=True) for n in range(1, 49)])
        await store.admit([message(f"${n}", context=True) for n in range(49, 61)])
        await store.admit([message("$other", session_id=OTHER_ROOM, context=True)])
        waiting = [one.key for one in await store.waiting(ROOM)]
        assert waiting == ["$trigger", *(f"${n}" for n in range(11, 61))]
        assert len(await store.waiting(OTHER_ROOM)) == 1
    assert outcomes(path)["$10"] == "beyond the newest context"


async def test_settling_without_a_turn_queues_what_is_said_about_it(path: Path) -> None:
    async with Store.open(path) as store:
        await store.admit([message("$1"), message("$2")])
        await store.settle(["$1"], "command", [delivery("d1")])
        await store.settle(["$1", "$9"], "too old", [])
        assert [one.delivery_id for one in await store.due_deliveries()] == ["d1"]
    assert outcomes(path) == {"$1": "command", "$2": None}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the store's clock ahead by days."""
    now = 1_800_000_000_000.0

    def ahead(days: float) -> None:
        nonlocal now
        now += days * 86_400_000
        monkeypatch.setattr("crdt.store._now_ms", lambda: int(now))

    ahead(0)
    return ahead


async def test_housekeeping_forgets_settled_rows_only_and_only_old_ones(
    path: Path, clock: Callable[[float], None]
) -> None:
    async with Store.open(path) as store:
        await store.admit([message("$old"), message("$waiting")])
        turn = await store.begin_turn(ROOM, "$old", "hello")
        await store.begin_turn(ROOM, "$waiting", "hello")
        await store.complete_turn(turn, "hi", [delivery("d-old"), delivery("d-due")])
        await store.delivery_sent("d-old", "$event")
        clock(89)
        await store.housekeep()
        assert set(outcomes(path)) == {"$old", "$waiting"}
        await store.settle(["$x"], "nothing")
        await store.admit([Message("$young", ROOM, ALICE, "x")])
        await store.settle(["$young"], "too old")
        clock(2)
        await store.housekeep()
        assert set(outcomes(path)) == {"$waiting", "$young"}
        assert look(path, "SELECT delivery_id FROM outbox") == [("d-due",)]
        assert look(path, "SELECT key FROM turns") == [("$waiting",)]
        assert len(await store.read_transcript(ROOM)) == 3


async def test_an_id_that_is_no_text_does_not_wedge_the_sync(store: Store) -> None:
    await store.admit([Message("$\ud800", "!r\udfff", "@\ud800:e.org", "hi")], "s1")
    assert await store.read_cursor() == "s1"
    assert [each.key for each in await store.waiting("!r\ufffd")] == ["$\ufffd"]
