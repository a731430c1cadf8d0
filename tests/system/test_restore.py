"""A backup that is restored answers nothing again, and goes on with what is new."""

from __future__ import annotations

import asyncio

from tests.servers.synapse import Person
from tests.system.conftest import enter
from tests.system.outside import answered, event, wait_until_settled
from tests.system.service import MusherProcess, environment


async def care(musher: MusherProcess, *arguments: str) -> tuple[int, str]:
    """Run `musher db …`; its exit code, and all that it says."""
    process = await asyncio.create_subprocess_exec(
        *musher._command("db", *arguments),
        cwd=musher.folder,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_a_restored_backup_answers_no_history(musher: MusherProcess, alice: Person) -> None:
    room = await enter(alice, musher)
    await musher.post_events(event(1))
    await wait_until_settled(alice, room, await alice.say(room, "before the backup"), musher.user_id)
    code, said = await care(musher, "backup", "backup.db")
    assert code == 0, said
    await musher.post_events(event(2))
    await wait_until_settled(alice, room, await alice.say(room, "after the backup"), musher.user_id)
    assert (await care(musher, "verify"))[0] == 0
    for command in (["restore", "backup.db"], ["compact"]):
        beside = sorted(path.name for path in musher.database.parent.iterdir())
        code, said = await care(musher, *command)
        assert (code, len(said.splitlines())) == (1, 1), said
        assert f"in use by another process (pid {musher.pid})" in said
        assert sorted(path.name for path in musher.database.parent.iterdir()) == beside
    await wait_until_settled(alice, room, await alice.say(room, "still here"), musher.user_id)
    await musher.stop()
    assert (await care(musher, "compact"))[0] == 0
    assert (await care(musher, "restore", "backup.db"))[0] == 0
    waiting = await alice.say(room, "after the restore")
    await musher.start()
    await wait_until_settled(alice, room, waiting, musher.user_id)
    await wait_until_settled(alice, room, await alice.say(room, "and on"), musher.user_id)
    spoken = await alice.said(room)
    asked = [each["event_id"] for each in spoken if each["sender"] == alice.user_id]
    assert [answered(each) for each in spoken if each["sender"] == musher.user_id] == asked
    await musher.stop()
    assert (await care(musher, "verify"))[0] == 0
    (session,) = await musher.command("sessions", room)
    users = [entry for entry in session["transcript"] if entry["role"] == "user"]
    assert [entry["text"].partition(": ")[2] for entry in users] == ["before the backup", "after the restore", "and on"]
    assert [line.partition(": ")[2] for line in users[1]["context"]] == ["after the backup", "still here"]
