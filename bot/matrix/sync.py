"""One step of the sync loop: one request to the homeserver, translated into values.

The server's JSON is read here directly, not through nio's event classes: one event that nio trips over would make it
drop the whole sync, and drop it again at each repetition.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import structlog

from bot.matrix.backfill import Backfill, Events
from bot.matrix.e2ee import Encryption
from bot.matrix.errors import MatrixError, Unreachable
from bot.matrix.model import Edit, Invite, Redaction, RoomMessage, SyncBatch, Undecryptable
from bot.matrix.rooms import Rooms, RoomState
from bot.matrix.second_asks import HEAVY, Patience
from bot.matrix.timeline import Reader, is_by_a_musher, own_arrival
from bot.matrix.values import as_object
from bot.matrix.wire import Wire
from bot.unforeseen import contained

log = structlog.get_logger(__name__)

TIMELINE_EVENTS: Final = 100
"""Of one room in one sync: the most that Synapse gives."""
ANSWER_TIMEOUT_S: Final = 600.0
"""With the state of all rooms, a sync of a big account is minutes of work. Silence is noticed long before that."""
LATE_S: Final = 2.0
"""How much longer than the long poll itself an answer may take before the server is asked again, at once."""
AGAIN_S: Final = 3.0

_NOTHING: Final = {"not_types": ["*"]}
_FILTER: Final = json.dumps(
    {
        "presence": _NOTHING,
        "account_data": _NOTHING,
        "room": {
            "account_data": _NOTHING,
            "ephemeral": _NOTHING,
            "state": {"lazy_load_members": True},
            "timeline": {"limit": TIMELINE_EVENTS, "lazy_load_members": True},
        },
    }
)


@dataclass(slots=True)
class _Gathered:
    """The rooms' news while a step goes through them."""

    messages: list[RoomMessage] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    redactions: list[Redaction] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)

    def add(self, said: RoomMessage | Edit | Redaction | None) -> None:
        match said:
            case RoomMessage():
                self.messages.append(said)
            case Edit():
                self.edits.append(said)
            case Redaction():
                self.redactions.append(said)


class Sync:
    """Asks for what is new since a token. Keeps no token itself: the caller stores it together with the messages."""

    def __init__(self, wire: Wire, rooms: Rooms, encryption: Encryption | None = None) -> None:
        self._wire = wire
        self._rooms = rooms
        self._encryption = encryption
        self._backfill = Backfill(wire)
        self._has_full_state = False

    async def step(self, since: str | None, timeout_ms: int) -> SyncBatch:
        """Wait up to `timeout_ms` for news and return them. A step that raises may be repeated with the same token.

        The process's first step returns at once, with the state of all rooms and all invitations still open.
        """
        first = not self._has_full_state
        answer = await self._ask(_FILTER, since, timeout_ms, full_state=first)
        rooms = as_object(answer.get("rooms"))
        invites = as_object(rooms.get("invite"))
        if first and since is not None:
            invites = await self._open_invites()
        if self._encryption is not None:
            await self._encryption.receive(answer, since)
        gathered = _Gathered()
        joined = {room_id: room for room_id, room in as_object(rooms.get("join")).items() if isinstance(room, dict)}
        for room_id, room in joined.items():
            with contained("room_not_read", MatrixError, room=room_id) as met:
                await self._gather(room_id, await self._news(room_id, room, since), gathered)
            if met.error is not None:
                gathered.broken.add(room_id)
        undecryptable = await self._settle_keys(gathered, answer["next_batch"])
        left = tuple(as_object(rooms.get("leave")))
        for room_id in left:
            self._rooms.leave(room_id)
            if self._encryption is not None:
                self._encryption.room_changed(room_id)
        self._backfill.step_ended()
        self._has_full_state = True
        return SyncBatch(
            next_batch=answer["next_batch"],
            messages=tuple(gathered.messages),
            edits=tuple(gathered.edits),
            redactions=tuple(gathered.redactions),
            invites=(
                *(invite for invite in self._invites(invites) if invite.room_id not in joined),
                *self._replacements(joined),
            ),
            joined=tuple(joined),
            left=left,
            undecryptable=undecryptable,
            upgrades=self._rooms.upgrades(),
            broken=tuple(gathered.broken),
        )

    async def _gather(self, room_id: str, events: Events, gathered: _Gathered) -> None:
        for event in events:
            with contained("event_not_read", MatrixError, room=room_id, id=event.get("event_id")) as met:
                gathered.add(self._reader(room_id).read(await self._decrypted(room_id, event)))
            if met.error is not None:
                gathered.broken.add(room_id)

    async def _decrypted(self, room_id: str, event: dict[str, Any]) -> dict[str, Any]:
        """The event as it was meant; one that can't be decrypted stays as it is."""
        if self._encryption is None or event.get("type") != "m.room.encrypted" or "state_key" in event:
            return event
        if is_by_a_musher(event):  # its key is not worth asking for
            return event
        return await self._encryption.read(room_id, event) or event

    async def _settle_keys(self, gathered: _Gathered, next_batch: str) -> tuple[Undecryptable, ...]:
        """Add the earlier messages whose keys have come by now; returns those whose keys are overdue."""
        if self._encryption is None:
            return ()
        for redaction in gathered.redactions:
            await self._encryption.forget_message(redaction.event_id)
        late = await self._encryption.now_readable()
        known = {message.event_id for message in gathered.messages}
        for room_id, event in late:
            said = self._reader(room_id).read(event) if self._rooms.get(room_id) is not None else None
            if not (isinstance(said, RoomMessage) and said.event_id in known):
                gathered.add(said)
        return await self._encryption.end_step(next_batch)

    async def _open_invites(self) -> dict[str, Any]:
        """All invitations that are neither accepted nor declined.

        An invitation stands only in the one sync after it came; a bot that crashed then must hear of it again.
        """
        # No room has this id, so that only invitations are left. Synapse answers the same question for two minutes with
        # the same answer, so it is never asked the same.
        nowhere = f"!{uuid4().hex}:nowhere"
        only = json.dumps({"presence": _NOTHING, "account_data": _NOTHING, "room": {"rooms": [nowhere]}})
        answer = await self._ask(only, None, 0, full_state=False)
        return as_object(as_object(answer.get("rooms")).get("invite"))

    async def _ask(self, filter_: str, since: str | None, timeout_ms: int, *, full_state: bool) -> dict[str, Any]:
        query = {"filter": filter_, "timeout": str(timeout_ms)}
        if since is not None:
            query["since"] = since
        if full_state:
            query["full_state"] = "true"
        heavy = full_state or since is None
        answer = await self._wire.get(
            "sync",
            query=query,
            timeout_s=ANSWER_TIMEOUT_S,
            patience=HEAVY if heavy else Patience(timeout_ms / 1000 + LATE_S, AGAIN_S),
            again=query | {"timeout": "0"},
        )
        if not isinstance(answer.get("next_batch"), str):
            raise Unreachable(self._wire.homeserver, "a sync without next_batch")
        return answer

    async def _news(self, room_id: str, room: dict[str, Any], since: str | None) -> Events:
        """The room's new events, in order, without those from before the bot was invited."""
        timeline = as_object(room.get("timeline"))
        events = _events(timeline)
        state = self._rooms.enter(room_id)
        await self._learn(room_id, state, _events(as_object(room.get("state"))) + events)
        if self._encryption is not None and (timeline.get("limited") is True or _changes_members(events)):
            self._encryption.room_changed(room_id)
        prev_batch = timeline.get("prev_batch")
        if timeline.get("limited") is True and since is not None and isinstance(prev_batch, str):
            events = await self._backfill.fill(room_id, events, prev_batch, since)
        arrival, _ = own_arrival(events, self._wire.user_id)
        if not arrival:
            return events
        log.info("events_before_invitation_passed_over", room=room_id, count=arrival)
        return events[arrival:]

    async def _learn(self, room_id: str, state: RoomState, events: Events) -> None:
        for event in events:
            was_encrypted, rules = state.encrypted, state.encryption
            state.apply(event, self._wire.user_id)
            if state.encryption is rules:
                continue
            if self._encryption is not None:
                await self._encryption.remember_rules(room_id, state.encryption)
            elif not was_encrypted:
                log.warning("room_is_encrypted", room=room_id)

    def _reader(self, room_id: str) -> Reader:
        return Reader(room_id, self._wire.user_id, self._rooms.enter(room_id).own_name)

    def _replacements(self, joined: Iterable[str]) -> Iterator[Invite]:
        """A room that was replaced asks its members over: whoever replaced it stands for the inviter."""
        for room_id in joined:
            state = self._rooms.enter(room_id)
            if state.replacement is not None and state.replaced_by and self._rooms.get(state.replacement) is None:
                yield Invite(state.replacement, state.replaced_by, by_upgrade=True)

    def _invites(self, invites: dict[str, Any]) -> Iterator[Invite]:
        for room_id, room in invites.items():
            state, inviter = RoomState(), None
            for event in _events(as_object(as_object(room).get("invite_state"))):
                state.apply(event, self._wire.user_id)
                inviter = _inviter(event, self._wire.user_id) or inviter
            if inviter is None:
                log.warning("invite_passed_over", room=room_id, problem="it does not say who invites")
                continue
            yield Invite(room_id, inviter, public=state.public, encrypted=state.encrypted)


def _changes_members(events: Events) -> bool:
    return any(event.get("type") == "m.room.member" for event in events)


def _inviter(event: dict[str, Any], user_id: str) -> str | None:
    if event.get("type") != "m.room.member" or event.get("state_key") != user_id:
        return None
    sender = event.get("sender")
    return sender if isinstance(sender, str) and as_object(event.get("content")).get("membership") == "invite" else None


def _events(section: dict[str, Any]) -> Events:
    events = section.get("events")
    return [event for event in events if isinstance(event, dict)] if isinstance(events, list) else []
