"""Forgejo: the payloads of Gitea under its own headers. Pure."""

from __future__ import annotations

from typing import Final

from bot.ingest.kind import Kind, event_header
from bot.ingest.signatures import HexHmac
from bot.ingest.sources import gitea

KIND: Final = Kind(
    name="forgejo",
    scheme=lambda secrets: HexHmac(secrets, "X-Forgejo-Signature"),
    event_name=event_header("X-Forgejo-Event"),
    id_headers=("X-Forgejo-Delivery",),
    preset=gitea.preset,
    patience_s=gitea.ANSWER_WITHIN_S,
)
