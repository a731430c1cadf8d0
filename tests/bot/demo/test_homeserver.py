"""The embedded homeserver: real Synapses, started, talked through, restarted and killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from bot.demo.homeserver import Homeserver, HomeserverFailed
from bot.demo.person import Refused
from tests.conftest import PersonMaker
from tests.servers.synapse import PASSWORD, Person, replies_to

REPOSITORY = Path(__file__).parents[3]
OWNER = """
import asyncio, sys
from bot.demo.homeserver import Homeserver

async def main():
    async with Homeserver.start(sys.argv[1], in_memory=True) as homeserver:
        print("PID", homeserver.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def ended(process: int) -> None:
    """Wait until a process, given by its pidfd and nobody's child here, has ended."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(process, over.set)
    try:
        async with asyncio.timeout(20):
            await over.wait()
    finally:
        loop.remove_reader(process)
        os.close(process)


async def test_two_people_talk_in_a_room(make_person: PersonMaker) -> None:
    alice, bob = await make_person("alice"), await make_person("bob")
    room = await alice.create_room([bob.user_id])
    assert ":" not in room  # room version 12
    await bob.wait_for_invite(room)
    await bob.join(room)
    await alice.wait_for_membership(room, bob.user_id)
    question = await alice.say(room, "what happened?", **{"m.mentions": {"user_ids": [bob.user_id]}})
    waiting = asyncio.create_task(alice.wait_for_reply(room, question, bob.user_id))
    await bob.wait_for(room, lambda events: events[-1]["event_id"] == question)
    await bob.say(room, "nothing", **{"m.relates_to": {"m.in_reply_to": {"event_id": question}}})
    answer = await waiting
    assert answer["content"]["body"] == "nothing"
    [reply] = await alice.wait_for_replies_to(room, question, bob.user_id)
    assert reply["event_id"] == answer["event_id"]
    assert replies_to(await alice.messages(room), answer["event_id"]) == []


async def test_messages_of_a_long_room_come_in_order_without_edits_and_redacted_ones(make_person: PersonMaker) -> None:
    alice = await make_person("alice")
    room = await alice.create_room()
    ids = [await alice.say(room, str(number)) for number in range(30)]
    await alice.edit(room, ids[3], "three")
    await alice.redact(room, ids[4])
    await alice.react(room, ids[5], "👍")
    assert [event["event_id"] for event in await alice.said(room)] == ids[:4] + ids[5:]
    kinds = [event["type"] for event in await alice.messages(room)]
    assert kinds[0] == "m.room.create"
    assert kinds[-2:] == ["m.room.redaction", "m.reaction"]


async def test_typing_power_levels_and_upgrades(make_person: PersonMaker) -> None:
    alice, bob = await make_person("alice"), await make_person("bob")
    room = await alice.create_room([bob.user_id])
    await bob.join(room)
    await bob.type(room)
    await alice.wait_for_typing(room, bob.user_id)
    await bob.type(room, False)
    await alice.wait_for_typing(room, bob.user_id, typing=False)
    await alice.set_power_levels(room, {bob.user_id: 10}, events_default=50)
    with pytest.raises(Refused) as refused:
        await bob.say(room, "hush")
    assert refused.value.errcode == "M_FORBIDDEN"
    successor = await alice.upgrade_room(room)
    tombstone = await alice.state(room, "m.room.tombstone")
    assert tombstone["replacement_room"] == successor


async def test_what_never_happens_is_reported_with_what_did(make_person: PersonMaker) -> None:
    alice = await make_person("alice")
    room = await alice.create_room()
    await alice.say(room, "only this")
    with pytest.raises(TimeoutError, match="only this"):
        await alice.wait_for(room, lambda events: None, timeout=0.5)


async def test_registering_twice_is_no_error_and_makes_no_device(synapse: Homeserver, make_person: PersonMaker) -> None:
    alice = await make_person("alice")
    user = alice.user_id[1:].split(":")[0]
    assert await synapse.register(user, "another password") == alice.user_id
    devices = await alice.request("GET", "devices")
    assert [device["device_id"] for device in devices["devices"]] == [alice.device_id]
    with pytest.raises(HomeserverFailed, match="Invalid username or password"):
        await synapse.login(user, "another password")


async def test_a_name_that_cannot_be_registered_is_refused_with_its_reason(synapse: Homeserver) -> None:
    with pytest.raises(HomeserverFailed, match=r"refused to register 'a b'.*can only contain"):
        await synapse.register("a b", PASSWORD)


async def test_it_runs_in_a_session_of_its_own(synapse: Homeserver) -> None:
    assert synapse.pid is not None
    assert os.getsid(synapse.pid) == synapse.pid


async def test_rooms_and_logins_outlive_kills_restarts_and_new_starts(tmp_path: Path) -> None:
    folder = tmp_path / "synapse"
    async with Homeserver.start(folder, server_name="team.test") as homeserver:
        url = homeserver.url
        async with Person.on(homeserver, "alice") as alice:
            assert alice.user_id == "@alice:team.test"
            room = await alice.create_room()
            said = await alice.say(room, "still here?")
            await homeserver.kill()
            assert homeserver.pid is None
            await homeserver.restart()
            assert homeserver.url == url
            assert [event["event_id"] for event in await alice.said(room)] == [said]
    async with Homeserver.start(folder) as homeserver:
        assert (homeserver.url, homeserver.server_name) == (url, "team.test")
        with pytest.raises(HomeserverFailed, match="another embedded homeserver runs in"):
            async with Homeserver.start(folder):
                pass
        async with Person.on(homeserver, "alice") as alice:
            assert [event["event_id"] for event in await alice.said(room)] == [said]
    assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child together with its parent")
async def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OWNER, str(tmp_path)), cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    try:
        async with asyncio.timeout(70):
            while not (line := await owner.stdout.readline()).startswith(b"PID "):
                assert line, "the owner ended before its homeserver was ready"
        child = os.pidfd_open(int(line.split()[1]))
        owner.send_signal(signal.SIGKILL)
        await ended(child)
    finally:
        if owner.returncode is None:
            owner.kill()
        await owner.wait()


async def test_a_database_that_is_none_fails_with_the_last_lines_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "homeserver.db").write_text("this is no database" * 100)
    with pytest.raises(HomeserverFailed, match=r"(?s)ended with exit code \d+ while starting.*file is not a database"):
        async with Homeserver.start(tmp_path):
            pass


async def test_one_that_is_never_ready_is_ended_and_reported(tmp_path: Path) -> None:
    with pytest.raises(HomeserverFailed, match=r"was not ready within 0.2 s: see .*homeserver\.log"):
        async with Homeserver.start(tmp_path, ready_within=0.2):
            pass
    async with Homeserver.start(tmp_path):  # nothing is left that would hold the folder or its port
        pass


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HomeserverFailed, match=f"can't use port {port}"):
            async with Homeserver.start(tmp_path, port):
                pass


async def test_a_remembered_port_that_is_taken_is_replaced_and_an_error_in_the_block_ends_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HomeserverFailed):
            async with Homeserver.start(tmp_path, port):
                pass
        with pytest.raises(ZeroDivisionError):
            async with Homeserver.start(tmp_path, in_memory=True) as homeserver:
                assert homeserver.port != port
                raise ZeroDivisionError
        assert homeserver.pid is None


async def test_a_lost_identity_is_reported(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text("{")
    with pytest.raises(HomeserverFailed, match=r"identity\.json does not hold .* start afresh"):
        async with Homeserver.start(tmp_path):
            pass


async def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HomeserverFailed, match=r"folder .*file/synapse can't be made"):
        async with Homeserver.start(tmp_path / "file" / "synapse"):
            pass


async def test_a_missing_synapse_is_reported_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "synapse", None)
    with pytest.raises(HomeserverFailed, match="uv sync --all-extras"):
        async with Homeserver.start(tmp_path):
            pass
