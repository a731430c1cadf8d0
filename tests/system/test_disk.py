"""A disk that is full or turns read-only under the whole service: told in few words, and nothing lost or told twice."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.crdt.disk import library
from tests.servers.model import ScriptedModel
from tests.servers.synapse import Person
from tests.system.conftest import MusherMaker, enter
from tests.system.outside import event, judge, line_of, wait_until_settled
from tests.system.service import until
from tests.system.test_start_errors import complaint

SMALL: Final = "3m"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that is soon full."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", place], check=False)
    if mounted.returncode:
        pytest.skip("needs leave to mount a disk")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path) -> None:
    """Leave no room, not for one byte."""
    with (disk / "ballast").open("ab", buffering=0) as ballast:
        for size in (4096, 1):
            try:
                while True:
                    ballast.write(bytes(size))
            except OSError:
                continue


def make_room(disk: Path) -> None:
    (disk / "ballast").unlink()


async def test_a_start_on_a_full_disk_says_so_and_one_with_room_goes_on(
    make_musher: MusherMaker, model: ScriptedModel, alice: Person, small_disk: Path
) -> None:
    musher = await make_musher({"store": {"path": str(small_disk / "musher.db")}})
    await musher.start()
    room = await enter(alice, musher)
    await musher.post_events(event(1))
    await wait_until_settled(alice, room, await alice.say(room, "with room"), musher.user_id)
    await musher.stop()
    fill(small_disk)
    asked = await alice.say(room, "without")
    assert "the disk is full: make room" in await complaint(musher)
    make_room(small_disk)
    await musher.start()
    await wait_until_settled(alice, room, asked, musher.user_id)
    verdict = await judge(alice, room, musher.user_id, model)
    assert verdict.lines == [line_of(event(1))]


@pytest.mark.skipif(library() is None, reason="SQLite is built into this Python and can't be watched")
async def test_a_disk_that_is_read_only_for_a_while_is_told_of_once_and_then_all_is_answered(
    make_musher: MusherMaker, model: ScriptedModel, alice: Person
) -> None:
    musher = await make_musher()
    read_only = musher.folder / "read-only"
    musher.launch = ("-m", "tests.system.refusing", str(read_only))
    await musher.start()
    room = await enter(alice, musher)
    await musher.post_events(event(1))
    gate = model.hang()
    await alice.say(room, "asked while it can be written to")
    await model.wait_for_requests(1)
    read_only.touch()
    gate.set()
    await musher.wait_for_log("reply_not_stored")
    asked = await alice.say(room, "asked while it can't")
    await musher.wait_for_log("sync_not_stored")
    assert await musher.answers("POST", "/v1/events", event(2)) == 503

    async def is_unready() -> bool | None:
        return True if await musher.answers("GET", "/readyz") == 503 else None

    await until(is_unready, "the service is not ready")
    read_only.unlink()
    await wait_until_settled(alice, room, asked, musher.user_id)
    await musher.post_events(event(2))
    await musher.wait_until_ready()
    verdict = await judge(alice, room, musher.user_id, model)
    assert verdict.lines == [line_of(event(1)), line_of(event(2))]
    told = Counter(line["event"] for line in musher.logs if line.get("level") in ("warning", "error"))
    not_ready = told.pop("not_ready")
    assert told == {"reply_not_stored": 1, "sync_not_stored": 1}
    assert not_ready <= 2, "for the store and, where it takes long, for the sync"
    assert not [line for line in musher.logs if "exception" in line]
