"""One turn, from a waiting message to a reply in the outbox: the product on a page.

    waiting messages -> begin (unseen events + marks + what was said, one commit) -> model -> complete (reply +
    deliveries + settled messages, one commit) -> outbox

The model is asked between the two commits. Whatever dies in between, the turn is begun again with the same bytes; its
attempts are counted, so that a message which kills the service does so three times at most.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol
from uuid import uuid4

import structlog

from bot import prompt, redactions, texts
from bot.llm import Model, ModelFailed
from bot.matrix import DELIVERY_ID_FIELD, reply_contents
from bot.notices import notice
from bot.policy import Details, NextTurn, next_turn
from bot.trouble import Trouble
from bot.typing_notice import Typing, typing_notice
from bot.unforeseen import contained
from bot.upgrades import stays
from crdt import (
    SINGLE_SLED,
    CrdtError,
    Delivery,
    LlmSessionView,
    Message,
    MessageChanged,
    RecordedEvent,
    StoreClosed,
    StoreDamaged,
    StoreUnavailable,
    TakenBack,
    TranscriptEntry,
    Turn,
    TurnOpen,
    UnknownTurn,
)

log = structlog.get_logger(__name__)

DEFAULT_PERSONA: Final = "default"
"""The persona of rooms that name no other; the prompt has instructions for it where the config has none."""
MAX_ATTEMPTS: Final = 3
"""Deaths in one turn after which it ends with a notice."""
LONGEST_REPLY: Final = 250_000
"""Characters. A model that has gone astray must not fill a room with hundreds of messages.

With the words about the cut, it is still short enough for HTML (`HTML_INPUT_LIMIT`).
"""
STORE_RETRY_S: Final = 2.0
"""Pause before a store that could not take something in is asked again."""

Keep = Callable[[RecordedEvent], bool]
Strike = Callable[[TranscriptEntry, Sequence[TakenBack]], TranscriptEntry]

TurnOutcome = Literal["answered", "failed", "poisoned", "broken", "parked"]
"""How a turn ended: with the model's reply; with a notice, since the model failed, or the turn killed the service too
often, or something unforeseen happened; or it was broken off in order, to be begun again."""


def _unwatched(_outcome: TurnOutcome) -> None:
    """Nobody counts."""


class TurnStore(Protocol):
    """What a turn needs of the store."""

    async def waiting(self, session_id: str) -> list[Message]: ...
    async def read_llm_session(self, session_id: str) -> LlmSessionView | None: ...
    async def write_llm_session(self, session_id: str, persona_name: str, scope: str) -> None: ...
    async def read_transcript(self, session_id: str) -> list[TranscriptEntry]: ...
    async def roll_session(self, session_id: str, keep_entries: int) -> None: ...
    async def redact_session(self, session_id: str, strike: Strike) -> int: ...
    async def begin_turn(
        self,
        session_id: str,
        key: str,
        text: str,
        context: Sequence[Message] = (),
        said: Sequence[Message] = (),
        max_lines: int = 200,
        keep: Keep | None = None,
        render: Callable[[Message], str] = ...,
    ) -> Turn: ...
    async def complete_turn(
        self, turn: Turn, reply: str, deliveries: Sequence[Delivery] = (), failed: bool = False
    ) -> None: ...
    async def park_turn(self, turn: Turn) -> None: ...
    async def settle(self, keys: Sequence[str], outcome: str, deliveries: Sequence[Delivery] = ()) -> None: ...


@dataclass(frozen=True, slots=True)
class RoomSettings:
    """What the operator configured for a room: who the model is there at first, and which events it is given."""

    persona_name: str = DEFAULT_PERSONA
    keep: Keep | None = None


@dataclass(frozen=True, slots=True)
class Turns:
    """Answers what waits in a room. `personas` maps names to instructions, `rooms` room ids to their settings.

    `announce` hears of a room whose reply is ready, `expect` of what is about to be put into the outbox for it, `ended`
    of what became of each turn; `queued` is called once something stands in the outbox; `moved_to` tells in which room
    the conversation of a room goes on.
    """

    store: TurnStore
    model: Model
    typing: Typing
    announce: Callable[[str], None]
    expect: Callable[[Sequence[Delivery]], None]
    queued: Callable[[], None]
    reached: Callable[[str], Awaitable[None]]
    personas: Mapping[str, str]
    rooms: Mapping[str, RoomSettings] = field(default_factory=dict)
    context_tokens: int = 8192
    moved_to: Callable[[str], str] = stays
    ended: Callable[[TurnOutcome], None] = _unwatched
    _store_trouble: Trouble = field(default_factory=lambda: Trouble("reply_not_stored", level="error"))

    async def answer_next(self, session_id: str) -> bool:
        """Take one turn of the room; returns whether more may wait there.

        Raises `StoreUnavailable`, `StoreDamaged` and `StoreClosed`. Of anything else that goes wrong the room is told.
        """
        with contained("room_work_failed", StoreUnavailable, StoreDamaged, StoreClosed, session=session_id):
            return await self._answer_next(session_id)
        told = notice(session_id, texts.UNEXPECTED, "broken", uuid4().hex)
        await self.store.settle([], "broken", [told])
        self.queued()
        return False

    async def _answer_next(self, session_id: str) -> bool:
        await self._strike(session_id)
        chosen = next_turn(await self.store.waiting(session_id))
        if chosen is None:
            return False
        with structlog.contextvars.bound_contextvars(session=session_id, turn=chosen.key):
            try:
                await self._take_or_give_up(session_id, chosen)
            except MessageChanged as error:
                log.info("turn_chosen_again", reason=str(error))
        return True

    async def _strike(self, session_id: str) -> None:
        """Forget what was taken back since it was told; with a turn open, that is done after its end."""
        with contained("redaction_failed", CrdtError, session=session_id):
            try:
                await self.store.redact_session(session_id, redactions.strike)
            except TurnOpen:
                log.debug("redaction_postponed", session=session_id)

    async def _take_or_give_up(self, session_id: str, chosen: NextTurn) -> None:
        with contained("turn_broke", CrdtError) as met:
            await self._take(session_id, chosen)
        if met.error is not None:  # the room gets a notice, and its next message is answered
            await self._give_up(session_id, chosen)

    async def _take(self, session_id: str, chosen: NextTurn) -> None:
        session = await self._session(session_id)
        turn = await self._begin(session, chosen)
        if turn.reply is not None:
            # Its messages came in again after its end; unsettled, they would be chosen for ever.
            await self.store.settle([message.key for message in chosen.said], "answered")
            return
        if turn.attempt > MAX_ATTEMPTS:
            log.error("turn_poisoned", attempts=turn.attempt - 1)
            await self._complete(turn, chosen, texts.POISONED, failed=True)
            self.ended("poisoned")
            return
        try:
            transcript = await self.store.read_transcript(session_id)
            async with typing_notice(self.typing, session_id):
                reply, failed = await self._ask(session, transcript)
            await self.reached("model")
            await self._complete(turn, chosen, reply, failed=failed)
            self.ended("failed" if failed else "answered")
        except asyncio.CancelledError:
            await self.store.park_turn(turn)
            self.ended("parked")
            raise
        await self._roll_if_outgrown(session_id, [*transcript, TranscriptEntry("assistant", turn.key, reply)])

    async def _session(self, session_id: str) -> LlmSessionView:
        """Read the room's session; a new one gets the persona that the config gives the room."""
        session = await self.store.read_llm_session(session_id)
        if session is None or not session.persona_name:
            persona_name = self._settings(session_id).persona_name
            await self.store.write_llm_session(session_id, persona_name=persona_name, scope=SINGLE_SLED)
            session = await self.store.read_llm_session(session_id)
        assert session is not None
        return session

    def _settings(self, session_id: str) -> RoomSettings:
        """What is configured for the room, or else for one that it has replaced."""
        own = self.rooms.get(session_id)
        if own is not None:
            return own
        former = next((room for room in self.rooms if self.moved_to(room) == session_id), None)
        if former is None:
            return RoomSettings()
        log.info(
            "room_settings_of_former_room",
            session=session_id,
            former=former,
            advice="configure them for the new room: after a restart, the former one may be unknown",
        )
        return self.rooms[former]

    async def _roll_if_outgrown(self, session_id: str, transcript: Sequence[TranscriptEntry]) -> None:
        """Roll the transcript to its newest half once it has outgrown the model's context."""
        keep_entries = prompt.kept_entries(transcript, self.context_tokens)
        if keep_entries is not None:
            try:
                await self.store.roll_session(session_id, keep_entries)
            except TurnOpen:
                log.debug("roll_postponed")

    async def _begin(self, session: LlmSessionView, chosen: NextTurn) -> Turn:
        return await self.store.begin_turn(
            session.session_id,
            chosen.key,
            "\n".join(_rendered(message) for message in chosen.said),
            context=chosen.context,
            said=chosen.said,
            max_lines=prompt.line_budget(self.context_tokens),
            keep=self._settings(session.session_id).keep,
            render=_rendered,
        )

    async def _ask(self, session: LlmSessionView, transcript: Sequence[TranscriptEntry]) -> tuple[str, bool]:
        """Ask the model; a failure becomes the notice that stands in for the reply."""
        instructions = self._instructions(session)
        budget_tokens = prompt.prompt_budget(self.context_tokens)
        try:
            try:
                return await self._reply(instructions, transcript, budget_tokens), False
            except ModelFailed as error:
                if error.kind == "context_overflow":
                    log.warning("context_overflow", budget_tokens=budget_tokens)
                    return await self._reply(instructions, transcript, budget_tokens // 2), False
                # What the server refused once it refuses in each later turn: the room would be stuck with it.
                if error.kind in ("refused", "bad_request") and any(entry.failed for entry in transcript):
                    log.warning("failed_turns_left_out", kind=error.kind, detail=error.detail)
                    less = prompt.without_failed_words(transcript)
                    return await self._reply(instructions, less, budget_tokens), False
                raise
        except ModelFailed as error:
            log.warning("model_failed", kind=error.kind, detail=error.detail)
            return texts.failure_notice(error.kind), True

    async def _reply(self, instructions: str, transcript: Sequence[TranscriptEntry], budget_tokens: int) -> str:
        messages = prompt.model_messages(instructions, transcript, budget_tokens=budget_tokens)
        reply = await self.model.reply(messages)
        log.info("model_replied", input_tokens=reply.input_tokens, output_tokens=reply.output_tokens)
        if len(reply.text) > LONGEST_REPLY:
            log.warning("reply_cut", characters=len(reply.text), kept=LONGEST_REPLY)
            return f"{reply.text[:LONGEST_REPLY]}\n\n{texts.CUT}"
        if reply.unfinished:
            log.warning("reply_unfinished", advice="raise llm.max_reply_tokens if this happens often")
            return f"{reply.text}\n\n{texts.UNFINISHED}"
        return reply.text

    def _instructions(self, session: LlmSessionView) -> str:
        instructions = self.personas.get(session.persona_name)
        if instructions is None and session.persona_name != DEFAULT_PERSONA:
            log.warning("persona_unknown", persona=session.persona_name)
        return instructions or self.personas.get(DEFAULT_PERSONA, "")

    async def _give_up(self, session_id: str, chosen: NextTurn) -> None:
        turn = await self._begin(await self._session(session_id), chosen)
        if turn.reply is None:
            await self._complete(turn, chosen, texts.UNEXPECTED, failed=True)
            self.ended("broken")

    async def _complete(self, turn: Turn, chosen: NextTurn, reply: str, *, failed: bool) -> None:
        self.announce(turn.session_id)
        trigger = chosen.newest
        contents = await asyncio.to_thread(  # a long reply keeps a core busy for half a second
            reply_contents,
            reply,
            reply_to=trigger.key,
            asker=trigger.sender,
            thread_root=Details.load(trigger.details).thread_in(turn.session_id),
            msgtype=_NOTICE if failed else _TEXT,
        )
        deliveries = [_delivery(turn, part, content) for part, content in enumerate(contents)]
        self.expect(deliveries)
        while not await self._stored(turn, reply, deliveries, failed=failed):  # noqa: ASYNC110 - nobody tells of room
            await asyncio.sleep(STORE_RETRY_S)
        self.queued()

    async def _stored(self, turn: Turn, reply: str, deliveries: Sequence[Delivery], *, failed: bool) -> bool:
        """Complete the turn; `False` while the store can't. The reply is kept then: asking again would cost another."""
        try:
            await self.store.complete_turn(turn, reply, deliveries, failed)
        except StoreUnavailable as error:
            self._store_trouble.met(str(error))
            return False
        except UnknownTurn:  # its room was replaced meanwhile: it is open in the new one, and taken up there
            log.info("turn_went_with_its_room")
        self._store_trouble.over()
        return True


_TEXT: Final[Literal["m.text"]] = "m.text"
_NOTICE: Final[Literal["m.notice"]] = "m.notice"


def _rendered(message: Message) -> str:
    return prompt.said(message.sender, message.text)


def _delivery(turn: Turn, part: int, content: Mapping[str, object]) -> Delivery:
    delivery_id = f"musher-{hashlib.sha256(f'{turn.session_id} {turn.key}'.encode()).hexdigest()[:32]}-{part}"
    text = json.dumps({**content, DELIVERY_ID_FIELD: delivery_id})
    return Delivery(delivery_id, turn.session_id, text, attempts=1, first_attempt_at=time.time())
