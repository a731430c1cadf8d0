"""A room that was replaced: whose session its messages belong to, and when it is moved."""

from __future__ import annotations

from pathlib import Path

from bot.matrix import Upgrade
from bot.upgrades import Upgrades
from crdt import Store
from tests.bot.edge import message
from tests.crdt.breakage import commit_in_doubt


class Sessions:
    def __init__(self) -> None:
        self.moved: list[tuple[str, str]] = []

    async def move_session(self, old: str, new: str) -> bool:
        self.moved.append((old, new))
        return old != "!nothing"


async def test_each_upgrade_is_followed_once_and_through_all_its_steps() -> None:
    sessions, woken = Sessions(), list[str]()
    upgrades = Upgrades(sessions, woken.append)
    first, second = Upgrade("!a", "!b"), Upgrade("!b", "!c")
    await upgrades.follow([first])
    await upgrades.follow([first, second, Upgrade("!nothing", "!new")])
    assert sessions.moved == [("!a", "!b"), ("!b", "!c"), ("!nothing", "!new")]
    assert woken == ["!b", "!c"]
    assert [upgrades.session_of(room) for room in ("!a", "!b", "!c", "!other")] == ["!c", "!c", "!c", "!other"]


async def test_a_session_moves_to_the_newest_room_in_whatever_order_the_steps_are_told() -> None:
    sessions, woken = Sessions(), list[str]()
    upgrades = Upgrades(sessions, woken.append)
    await upgrades.follow([Upgrade("!b", "!c"), Upgrade("!a", "!b")])
    assert sessions.moved[-1] == ("!a", "!c")
    assert woken[-1] == "!c"
    assert upgrades.session_of("!a") == "!c"


async def test_rooms_that_replace_each_other_in_a_circle_hang_nothing() -> None:
    sessions = Sessions()
    upgrades = Upgrades(sessions, lambda _: None)
    await upgrades.follow([Upgrade("!a", "!b"), Upgrade("!b", "!a"), Upgrade("!c", "!c")])
    assert upgrades.session_of("!a") == upgrades.session_of("!b") == "!b"
    assert upgrades.session_of("!c") == "!c"


async def test_the_session_goes_back_when_the_bot_is_put_out_of_the_new_room() -> None:
    sessions, woken = Sessions(), list[str]()
    upgrades = Upgrades(sessions, woken.append)
    first, second = Upgrade("!a", "!b"), Upgrade("!b", "!c")
    await upgrades.follow([first, second])
    sessions.moved.clear()
    await upgrades.follow([first], left=["!c"])
    await upgrades.follow([], left=["!b"])
    assert sessions.moved == [("!c", "!b"), ("!b", "!a")]
    assert woken[-2:] == ["!b", "!a"]
    assert upgrades.session_of("!a") == "!a"
    await upgrades.follow([first])
    assert sessions.moved[-1] == ("!a", "!b")
    assert upgrades.session_of("!a") == "!b"


async def test_the_session_stays_where_no_older_room_is_left_to_go_back_to() -> None:
    sessions = Sessions()
    upgrades = Upgrades(sessions, lambda _: None)
    await upgrades.follow([Upgrade("!a", "!b"), Upgrade("!b", "!c"), Upgrade("!d", "!e")])
    sessions.moved.clear()
    await upgrades.follow([Upgrade("!d", "!e")], left=["!b"])
    await upgrades.follow([Upgrade("!d", "!e")], left=["!c"])
    await upgrades.follow([], left=["!d", "!e"])
    assert sessions.moved == []
    assert [upgrades.session_of(room) for room in ("!a", "!d")] == ["!c", "!e"]


async def test_a_move_that_was_reported_as_failed_and_yet_was_done_wakes_the_new_room(tmp_path: Path) -> None:
    woken: list[str] = []
    async with Store.open(tmp_path / "musher.db") as store:
        upgrades = Upgrades(store, woken.append)
        await store.write_llm_session("!a", "default", "single-sled")
        await store.admit([message("$1", session_id="!a")])
        with commit_in_doubt(store):
            await upgrades.follow([Upgrade("!a", "!b")])
        await upgrades.follow([Upgrade("!a", "!b")])
        assert await store.waiting_sessions() == ["!b"]
    assert woken == ["!b"]
