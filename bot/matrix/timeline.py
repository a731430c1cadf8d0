"""Pure: from the raw events of a room's timeline to what people said in it.

Whatever a remote server or client may put into an event, reading it never raises: an event that can't be understood is
logged, without its text, and passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, TypeGuard

import structlog

from bot.matrix.model import DELIVERY_ID_FIELD, Edit, Redaction, RoomMessage
from bot.matrix.values import as_object

log = structlog.get_logger(__name__)

LONGEST_ID_BYTES: Final = 255
"""Event and user ids (Matrix specification, appendices, "Common identifier format")."""
LATEST_MS: Final = 2**53 - 1
"""The largest integer of canonical JSON."""

_SILENT: Final = frozenset({"m.notice", "m.server_notice", "m.key.verification.request"})
"""What programs say to people. Answering it could start an endless exchange between two bots."""
WORDLESS: Final = {
    "m.sticker": "sticker_passed_over",
    "m.poll.start": "poll_passed_over",
    "org.matrix.msc3381.poll.start": "poll_passed_over",
}
"""What people say without words to answer, by its type, and what the log tells of it."""
_UNREAD: Final = {"m.room.encrypted": "encrypted_message_passed_over"} | WORDLESS
_KINDS: Final = ("m.room.message", "m.room.redaction", *_UNREAD)
_MEDIA: Final = {"m.image": "image", "m.file": "file", "m.audio": "audio", "m.video": "video", "m.location": "location"}
_REPLY_QUOTE: Final = re.compile(r"> (\* )?<@")


class Reader:
    """Reads the events of one room as one user: `user_id` is the bot's own, `own_name` its display name there."""

    def __init__(self, room_id: str, user_id: str, own_name: str | None) -> None:
        self.room_id = room_id
        self.user_id = user_id
        self._called = _called(user_id, own_name)

    def read(self, event: Mapping[str, Any]) -> RoomMessage | Edit | Redaction | None:
        """Return what the event means to the bot; `None` for all that is no trigger."""
        kind = event.get("type")
        if kind not in _KINDS or "state_key" in event:
            return None
        event_id, sender = _identifier(event.get("event_id")), _identifier(event.get("sender"))
        if event_id is None or sender is None:
            log.warning(
                "event_passed_over", room=self.room_id, event_id=event_id, problem="no valid event_id and sender"
            )
            return None
        if kind in _UNREAD:
            if sender != self.user_id and not is_by_a_musher(event):
                log.info(_UNREAD[kind], room=self.room_id, event_id=event_id)
            return None
        if kind == "m.room.redaction":
            return self._redaction(event, event_id, sender)
        if sender == self.user_id or _is_redacted(event) or is_by_a_musher(event):
            return None
        return self._message(event, event_id, sender)

    def _redaction(self, event: Mapping[str, Any], event_id: str, sender: str) -> Redaction | None:
        # Room version 11 moved the field from the event into its content.
        redacts = _identifier(as_object(event.get("content")).get("redacts")) or _identifier(event.get("redacts"))
        if redacts is None:
            log.warning("event_passed_over", room=self.room_id, event_id=event_id, problem="a redaction of nothing")
            return None
        return Redaction(event_id=redacts, room_id=self.room_id, by=sender)

    def _message(self, event: Mapping[str, Any], event_id: str, sender: str) -> RoomMessage | Edit | None:
        content = as_object(event.get("content"))
        relation = as_object(content.get("m.relates_to"))
        if relation.get("rel_type") == "m.replace":
            return self._edit(content, relation, event_id, sender)
        msgtype, origin_ms = content.get("msgtype"), event.get("origin_server_ts")
        if isinstance(msgtype, str) and msgtype in _SILENT:
            return None
        reply_to = _identifier(as_object(relation.get("m.in_reply_to")).get("event_id"))
        body = _body(content, quoted=reply_to is not None)
        if body is None or not isinstance(msgtype, str) or not _is_time(origin_ms):
            log.warning(
                "event_passed_over",
                room=self.room_id,
                event_id=event_id,
                problem="no valid body, msgtype and origin_server_ts",
            )
            return None
        threaded = relation.get("rel_type") == "m.thread"
        return RoomMessage(
            event_id=event_id,
            room_id=self.room_id,
            sender=sender,
            body=body,
            origin_ms=origin_ms,
            msgtype=_clean(msgtype),
            thread_root=_identifier(relation.get("event_id")) if threaded else None,
            # In a thread this may only be there for clients that know no threads.
            reply_to=None if threaded and relation.get("is_falling_back") is True else reply_to,
            mentions_me=self._mentions_me(content, body),
        )

    def _edit(self, content: Mapping[str, Any], relation: Mapping[str, Any], event_id: str, sender: str) -> Edit | None:
        edited = _identifier(relation.get("event_id"))
        new = as_object(content.get("m.new_content"))
        body = _body(new, quoted=True)
        if edited is None or body is None:
            log.warning(
                "event_passed_over",
                room=self.room_id,
                event_id=event_id,
                problem="an edit without its target or without a new body",
            )
            return None
        return Edit(event_id=edited, room_id=self.room_id, sender=sender, body=body)

    def _mentions_me(self, content: Mapping[str, Any], body: str) -> bool:
        mentions = content.get("m.mentions")
        if isinstance(mentions, dict):
            users = mentions.get("user_ids")
            return isinstance(users, list) and self.user_id in users
        return self._called.search(body) is not None


def is_by_a_musher(event: Mapping[str, Any]) -> bool:
    """Whether this or another Musher has sent the event: two that answer each other would never end.

    The mark stands on both sides of an encryption.
    """
    return DELIVERY_ID_FIELD in as_object(event.get("content"))


def own_arrival(events: Iterable[Mapping[str, Any]], user_id: str) -> tuple[int | None, bool]:
    """Find where the user's present stay in the room begins: at its invitation, or else at its joining.

    `events` are in order, oldest first. Returns the index of that event, or `None` where it lies before them, and
    whether the joining is among them while the invitation that led to it is not.
    """
    invitation_is_earlier = False
    for index, event in reversed(list(enumerate(events))):
        if event.get("type") != "m.room.member" or event.get("state_key") != user_id:
            continue
        membership = as_object(event.get("content")).get("membership")
        before = _membership_before(event)
        if membership == "join" and before == "join":
            continue  # only a new name or picture
        if membership == "join" and before == "invite":
            invitation_is_earlier = True
            continue
        return index, False
    return None, invitation_is_earlier


def _membership_before(event: Mapping[str, Any]) -> object:
    unsigned = as_object(event.get("unsigned"))
    before = as_object(unsigned.get("prev_content")).get("membership")
    if before is None and "replaces_state" in unsigned:
        return "join"  # unknown, and the safe reading: it hides no message
    return before


def _is_redacted(event: Mapping[str, Any]) -> bool:
    return "redacted_because" in as_object(event.get("unsigned")) or event.get("content") == {}


def _is_time(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LATEST_MS


def _body(content: Mapping[str, Any], quoted: bool) -> str | None:
    """The text to show the model, or `None` if there is none. `quoted` drops the quotation that a reply begins with."""
    body, kind = content.get("body"), content.get("msgtype")
    if not isinstance(body, str):
        return None
    body = _clean(body)
    if isinstance(kind, str) and kind in _MEDIA:
        name = content.get("filename")
        name = _clean(name) if isinstance(name, str) and name else body
        label = f"[{_MEDIA[kind]}: {' '.join(name.split())}]"
        return label if name == body else f"{label} {body}"
    return (_without_quotation(body) if quoted else body) if body.strip() else None


def _without_quotation(body: str) -> str:
    """Drop the fallback that older clients put before a reply (client-server API, "Rich replies")."""
    if not _REPLY_QUOTE.match(body):
        return body
    lines = body.split("\n")
    said = next((number for number, line in enumerate(lines) if not line.startswith(">")), len(lines))
    return "\n".join(lines[said:]).strip() or body


def _called(user_id: str, own_name: str | None) -> re.Pattern[str]:
    localpart = user_id.removeprefix("@").partition(":")[0]
    return _word_pattern(tuple(name for name in (user_id, localpart, own_name) if name))


@lru_cache(maxsize=256)
def _word_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)", re.IGNORECASE)


def _identifier(value: object) -> str | None:
    """An id as it came, or `None` where it could not be stored or sent back."""
    if not isinstance(value, str) or not value:
        return None
    try:
        return value if len(value.encode()) <= LONGEST_ID_BYTES else None
    except UnicodeEncodeError:
        return None


def _clean(text: str) -> str:
    """Replace lone surrogates, which JSON may hold and neither SQLite nor pycrdt can store."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
