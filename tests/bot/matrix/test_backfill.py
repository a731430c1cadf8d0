"""A busy room and a long downtime lose no message, and what is too much is said."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bot.matrix.backfill import MOST_FAILURES, MOST_MESSAGES, MOST_PAGES, PAGE_EVENTS
from bot.matrix.client import MatrixClient
from bot.matrix.errors import RateLimited, Unreachable
from bot.matrix.model import SyncBatch
from tests.bot.matrix.fake import Answer, FakeHomeserver, error, message, synced
from tests.conftest import PersonMaker


def bodies(batch: SyncBatch) -> list[str]:
    return [message.body for message in batch.messages]


async def test_more_messages_than_a_sync_carries_all_arrive_in_order(
    bot: MatrixClient, make_person: PersonMaker
) -> None:
    alice = await make_person("alice")
    room = await alice.create_room([bot.user_id])
    await bot.join(room)
    await alice.say(room, "seen already")
    since = (await bot.sync(None, 0)).next_batch
    taken_back = await alice.say(room, "taken back")
    texts = [f"message {number}" for number in range(230)]
    for number, text in enumerate(texts):
        await alice.say(room, text)
        if number == 20:  # neither hides what came before it
            await bot._wire.put("profile", bot.user_id, "displayname", body={"displayname": "Rex"})
            await alice.redact(room, taken_back)
    batch = await bot.sync(since, 0)
    assert bodies(batch) == texts
    assert [redaction.event_id for redaction in batch.redactions] == [taken_back]


async def test_a_long_past_before_the_invitation_stays_out(bot: MatrixClient, make_person: PersonMaker) -> None:
    alice = await make_person("alice")
    await bot.sync(None, 0)
    room = await alice.create_room()
    for number in range(30):
        await alice.say(room, f"before {number}")
    await alice.invite(room, bot.user_id)
    texts = [f"after {number}" for number in range(120)]
    for text in texts[:60]:
        await alice.say(room, text)
    # The last sync ends in the midst of what was said between the invitation and the joining.
    since = (await bot.sync(None, 1)).next_batch
    for text in texts[60:]:
        await alice.say(room, text)
    await bot.join(room)
    assert bodies(await bot.sync(since, 0)) == texts


class EndlessRoom:
    """A room with as long a past as anybody asks for. Pages hold `page` messages each."""

    def __init__(self, fake: FakeHomeserver, page: int = PAGE_EVENTS) -> None:
        self._page = page
        self._first_page_begins = 1_000_000
        fake.routes["/sync"] = lambda _: synced(message(self._first_page_begins), limited=True, prev_batch="p0")
        fake.routes["/messages"] = self.messages

    def messages(self, request: web.Request) -> Answer:
        page = int(request.query["from"].removeprefix("p"))
        newest = self._first_page_begins - 1 - page * self._page
        chunk: list[Any] = [message(number) for number in range(newest, newest - self._page, -1)]
        return {"chunk": chunk, "end": f"p{page + 1}"}


async def test_a_past_that_is_too_long_is_cut_and_said(fake: FakeHomeserver, faked_bot: MatrixClient) -> None:
    EndlessRoom(fake)
    with capture_logs() as logs:
        batch = await faked_bot.sync("s1", 0)
    newest = 1_000_000
    expected = [f"message {number}" for number in range(newest - MOST_MESSAGES, newest + 1)]
    assert bodies(batch) == expected
    (cut,) = [line for line in logs if line["event"] == "backfill_truncated"]
    assert cut["kept"] == MOST_MESSAGES + 1
    assert cut["oldest"] == f"$message-{newest - MOST_MESSAGES}"


async def test_a_server_that_gives_empty_pages_for_ever_is_left(fake: FakeHomeserver, faked_bot: MatrixClient) -> None:
    EndlessRoom(fake, page=0)
    assert bodies(await faked_bot.sync("s1", 0)) == ["message 1000000"]
    assert len(fake.asked("/messages")) == MOST_PAGES


async def test_pages_that_overlap_bring_no_message_twice(fake: FakeHomeserver, faked_bot: MatrixClient) -> None:
    pages: dict[str, Answer] = {
        "p0": {"chunk": [message(4), message(3), None, message(0, event_id=[]), message(2)], "end": "p1"},
        "p1": {"chunk": [message(2), message(1)], "end": "p1"},
    }
    fake.routes["/sync"] = lambda _: synced(message(4), message(5), limited=True, prev_batch="p0")
    fake.routes["/messages"] = lambda request: pages[request.query["from"]]
    assert bodies(await faked_bot.sync("s1", 0)) == [f"message {number}" for number in range(1, 6)]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (error(500, "M_UNKNOWN"), Unreachable),
        (error(429, "M_LIMIT_EXCEEDED"), RateLimited),
        (web.json_response({"chunk": 4}), Unreachable),
    ],
)
async def test_a_fault_that_passes_fails_the_whole_step_and_a_repetition_loses_nothing(
    answer: web.Response, kind: type[Exception], fake: FakeHomeserver, faked_bot: MatrixClient
) -> None:
    fake.routes["/sync"] = lambda _: synced(message(2), limited=True, prev_batch="p0")
    fake.routes["/messages"] = lambda _: answer
    with pytest.raises(kind):
        await faked_bot.sync("s1", 0)
    fake.routes["/messages"] = lambda _: {"chunk": [message(1)]}
    assert bodies(await faked_bot.sync("s1", 0)) == ["message 1", "message 2"]


async def test_one_rooms_broken_history_does_not_keep_the_bot_silent_for_ever(
    fake: FakeHomeserver, faked_bot: MatrixClient
) -> None:
    fake.routes["/sync"] = lambda _: synced(message(2), limited=True, prev_batch="p0")
    fake.routes["/messages"] = lambda _: error(500, "M_UNKNOWN")
    for _ in range(MOST_FAILURES - 1):
        with pytest.raises(Unreachable):
            await faked_bot.sync("s1", 0)
    with capture_logs() as logs:
        assert bodies(await faked_bot.sync("s1", 0)) == ["message 2"]
    assert "backfill_gave_up" in [line["event"] for line in logs]


async def test_a_history_that_is_refused_is_left_and_said(fake: FakeHomeserver, faked_bot: MatrixClient) -> None:
    fake.routes["/sync"] = lambda _: synced(message(2), limited=True, prev_batch="p0")
    fake.routes["/messages"] = lambda _: error(403, "M_FORBIDDEN")
    with capture_logs() as logs:
        assert bodies(await faked_bot.sync("s1", 0)) == ["message 2"]
    assert "backfill_refused" in [line["event"] for line in logs]


async def test_the_first_sync_of_all_looks_no_further_back(fake: FakeHomeserver, faked_bot: MatrixClient) -> None:
    fake.routes["/sync"] = lambda _: synced(message(2), limited=True, prev_batch="p0")
    assert bodies(await faked_bot.sync(None, 0)) == ["message 2"]
    assert fake.asked("/messages") == []


async def test_many_gaps_are_filled_though_each_round_of_requests_fails_somewhere(
    fake: FakeHomeserver, faked_bot: MatrixClient
) -> None:
    rooms = [f"!room-{number}:fake" for number in range(10)]
    asked = 0

    def messages(request: web.Request) -> Answer:
        nonlocal asked
        asked += 1
        number = int(request.query["from"].removeprefix("p"))
        return error(502, "M_UNKNOWN") if asked % 4 == 0 else {"chunk": [message(100 + number)]}

    timelines = {
        room: {"timeline": {"events": [message(200 + number)], "limited": True, "prev_batch": f"p{number}"}}
        for number, room in enumerate(rooms)
    }
    fake.routes["/sync"] = lambda _: {"next_batch": "s2", "rooms": {"join": timelines}}
    fake.routes["/messages"] = messages
    failures = 0
    while True:
        try:
            batch = await faked_bot.sync("s1", 0)
            break
        except Unreachable:
            failures += 1
            assert failures < 4
    assert bodies(batch) == [f"message {kind + number}" for number in range(len(rooms)) for kind in (100, 200)]


async def test_a_gap_that_has_grown_since_it_was_filled_is_filled_anew(
    fake: FakeHomeserver, faked_bot: MatrixClient
) -> None:
    pages: dict[str, Answer] = {"p1": {"chunk": [message(1)]}, "p2": {"chunk": [message(2), message(1)]}}
    first = {"timeline": {"events": [message(2)], "limited": True, "prev_batch": "p1"}}
    grown = {"timeline": {"events": [message(3)], "limited": True, "prev_batch": "p2"}}
    broken = {"timeline": {"events": [message(9)], "limited": True, "prev_batch": "p9"}}
    fake.routes["/messages"] = lambda request: pages.get(request.query["from"], error(502, "M_UNKNOWN"))
    fake.routes["/sync"] = lambda _: {"next_batch": "s2", "rooms": {"join": {"!a:fake": first, "!b:fake": broken}}}
    with pytest.raises(Unreachable):
        await faked_bot.sync("s1", 0)
    fake.routes["/sync"] = lambda _: {"next_batch": "s3", "rooms": {"join": {"!a:fake": grown}}}
    assert bodies(await faked_bot.sync("s1", 0)) == ["message 1", "message 2", "message 3"]
