from __future__ import annotations

import asyncio

import pytest

from bot.demo.conversation import Conversation, NoReply, Said
from tests.conftest import PersonMaker


async def test_what_is_said_arrives_once_in_order_with_what_it_answers_and_others_are_seen_typing(
    make_person: PersonMaker,
) -> None:
    alice, bob = await make_person("alice"), await make_person("bob")
    room = await alice.create_room([bob.user_id])
    await bob.join(room)
    await bob.say(room, "long ago")
    heard: asyncio.Queue[Said] = asyncio.Queue()
    typing: asyncio.Queue[bool] = asyncio.Queue()
    conversation = Conversation(alice, room, heard.put_nowait, typing.put_nowait)
    assert await conversation.open() == [Said(bob.user_id, "long ago")]
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(conversation.run())
        asking = tasks.create_task(conversation.ask("what happened?", 20))
        assert await heard.get() == Said(alice.user_id, "what happened?", here=True)
        await alice.type(room)
        await bob.type(room)
        while not await typing.get():
            """That is Alice alone."""
        await bob.type(room, False)
        while await typing.get():
            """Bob still types."""
        question = (await alice.said(room))[-1]["event_id"]
        notice = await bob.send(room, "m.room.message", {"msgtype": "m.notice", "body": "no idea"})
        await bob.edit(room, notice, "an idea")
        await bob.say(room, "nothing", **{"m.relates_to": {"m.in_reply_to": {"event_id": question}}})
        reply = await asking
        assert reply == Said(bob.user_id, "nothing", reply_to=question)
        assert [await heard.get(), await heard.get()] == [Said(bob.user_id, "no idea", failed=True), reply]
        running.cancel()


async def test_a_message_that_nobody_answers_is_reported(make_person: PersonMaker) -> None:
    alice = await make_person("alice")
    conversation = Conversation(alice, await alice.create_room(), lambda said: None)
    await conversation.open()
    with pytest.raises(NoReply, match=r"no reply to 'anyone\?' within 0.2 s"):
        await conversation.ask("anyone?", 0.2)
