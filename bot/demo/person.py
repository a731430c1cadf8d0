"""A person who talks in rooms, over the plain client-server API.

It shares no code with the bot's Matrix library, so what a person sees is what any other client would.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from bot.demo.homeserver import Credentials
from bot.errors import MusherError

LONG_POLL_S: Final = 5.0
"""How long the homeserver may hold a /sync back while there is nothing new."""


class Refused(MusherError):
    """The homeserver answered with an error."""

    def __init__(self, status: int, errcode: str, problem: str) -> None:
        self.status = status
        self.errcode = errcode
        super().__init__(f"the homeserver refused a request: {status} {errcode}: {problem}")


class HomeserverGone(MusherError):
    """The homeserver does not answer any more."""

    def __init__(self, url: str, error: Exception) -> None:
        super().__init__(
            f"the homeserver at {url} does not answer any more ({type(error).__name__}): start again, "
            "and see homeserver.log in its folder if that does not help"
        )


class Person:
    """A user of the homeserver, logged in on a device of their own. All calls raise `Refused` or `HomeserverGone`."""

    def __init__(self, url: str, credentials: Credentials, http: aiohttp.ClientSession) -> None:
        self.url = url
        self.user_id = credentials.user_id
        self.device_id = credentials.device_id
        self.access_token = credentials.access_token
        self._http = http

    async def request(self, method: str, *path: str, body: object = None, **query: str | int) -> Any:
        """Call `/_matrix/client/v3/<path…>`; the parts of the path are quoted here."""
        url = f"{self.url}/_matrix/client/v3/" + "/".join(quote(part, safe="") for part in path)
        headers = {"Authorization": f"Bearer {self.access_token}"}
        parameters = {key: str(value) for key, value in query.items()}
        try:
            async with self._http.request(
                method, URL(url, encoded=True), json=body, params=parameters, headers=headers
            ) as response:
                answer = await response.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise HomeserverGone(self.url, error) from error
        if response.status >= 400:
            raise Refused(response.status, answer.get("errcode", "?"), answer.get("error", "?"))
        return answer

    # Rooms

    async def create_room(self, invite: Sequence[str] = (), **options: object) -> str:
        """Make a private room (`options` as in the specification's createRoom) and return its id."""
        body = {"preset": "private_chat", "invite": list(invite)} | options
        return str((await self.request("POST", "createRoom", body=body))["room_id"])

    async def find_room(self, alias: str) -> str | None:
        """The id of the room with this address (`#name:server`), if there is one."""
        try:
            return str((await self.request("GET", "directory", "room", alias))["room_id"])
        except Refused as error:
            if error.status == 404:
                return None
            raise

    async def invite(self, room: str, user_id: str) -> None:
        await self.request("POST", "rooms", room, "invite", body={"user_id": user_id})

    async def join(self, room: str) -> None:
        await self.request("POST", "join", room, body={})

    async def membership(self, room: str, user_id: str) -> str:
        """What `user_id` is to the room: "join", "invite", "leave", "ban"; "leave" also for who never was there."""
        try:
            member = await self.request("GET", "rooms", room, "state", "m.room.member", user_id)
        except Refused as error:
            if error.status == 404:
                return "leave"
            raise
        return str(member["membership"])

    # Saying things

    async def send(self, room: str, kind: str, content: dict[str, Any]) -> str:
        """Send any kind of event and return its id."""
        answer = await self.request("PUT", "rooms", room, "send", kind, uuid.uuid4().hex, body=content)
        return str(answer["event_id"])

    async def say(self, room: str, text: str, **extra: object) -> str:
        """Send a text message, with `extra` in its content, and return its event id."""
        return await self.send(room, "m.room.message", {"msgtype": "m.text", "body": text} | extra)

    # Seeing what others do

    async def sync(self, room: str, since: str | None, *, newest: int = 1) -> tuple[dict[str, Any], str]:
        """What /sync says of one room this person is in, and the token for the next call.

        The timeline holds `newest` events at most. Without a token it answers at once, with one when there is
        something new, or after `LONG_POLL_S`.
        """
        only = {"rooms": [room], "timeline": {"limit": newest}, "state": {"lazy_load_members": True}}
        query: dict[str, str | int] = {"filter": json.dumps({"room": only, "presence": {"not_types": ["*"]}})}
        if since is not None:
            query |= {"since": since, "timeout": int(LONG_POLL_S * 1000)}
        answer = await self.request("GET", "sync", **query)
        return answer.get("rooms", {}).get("join", {}).get(room, {}), str(answer["next_batch"])
