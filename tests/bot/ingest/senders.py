"""Senders of webhooks, as they sign and name their deliveries; and the sources that take them."""

from __future__ import annotations

import base64
import hmac
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

from multidict import CIMultiDict

from bot.config.sections import RuleConfig, SourceConfig
from bot.ingest.mapping import Mapped
from bot.ingest.source import Source
from tests.bot.ingest.raw_http import Answer, connect, head

SECRET = "it's a secret to everybody"
WHSEC = "whsec_" + base64.b64encode(b"twenty-four bytes of key").decode()
PATIENCE_S = 20.0


def source(kind: str, *rules: Mapping[str, str], name: str = "", secrets: tuple[str, ...] = ()) -> Source:
    given = secrets or ((WHSEC,) if kind == "standard" else (SECRET,))
    texts = [RuleConfig.model_validate(rule) for rule in rules]
    config = SourceConfig.model_validate({"name": name or kind, "kind": kind, "secrets": given, "rules": texts})
    return Source(config)


def hexmac(secret: str, body: bytes) -> str:
    return hmac.new(secret.encode(), body, "sha256").hexdigest()


def encode(content: object) -> bytes:
    return content if isinstance(content, bytes) else json.dumps(content).encode()


def github(event: str, body: bytes, secret: str = SECRET, delivery: str | None = None) -> dict[str, str]:
    return {
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": delivery or str(uuid.uuid4()),
        "X-Hub-Signature-256": "sha256=" + hexmac(secret, body),
    }


def standard(body: bytes, secret: str = WHSEC, delivery: str | None = None, at: float | None = None) -> dict[str, str]:
    delivery = delivery or f"msg_{uuid.uuid4()}"
    stamp = str(int(time.time() if at is None else at))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = hmac.digest(key, f"{delivery}.{stamp}.".encode() + body, "sha256")
    signature = "v1," + base64.b64encode(signed).decode()
    return {"webhook-id": delivery, "webhook-timestamp": stamp, "webhook-signature": signature}


def mapped(taken_by: Source, content: object, **headers: str) -> Mapped:
    return taken_by.map(CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()}), content)


def moves(taken_by: Source, content: object, **headers: str) -> tuple[str, str, str, str] | str:
    """The one event that a delivery becomes, as a tuple; or the reason why it becomes none."""
    found = mapped(taken_by, content, **headers)
    if not found.events:
        return found.reason
    (event,) = found.events
    return event.story_id, event.from_stage, event.to_stage, event.pipeline_event


async def deliver(port: int, name: str, content: object, headers: Mapping[str, str | None]) -> Answer:
    body = encode(content)
    sent: dict[str, Any] = {"Authorization": None, "Content_Length": str(len(body)), **headers}
    async with connect(port) as connection:
        await connection.send(head(f"/v1/hooks/{name}", **sent) + body)
        return await connection.answer()
