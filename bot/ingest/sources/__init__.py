"""The kinds of sender, one module each. A new one is a module with a `KIND`, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from bot.ingest.kind import Kind
from bot.ingest.sources import bearer, forgejo, gitea, github, gitlab, jira, linear, standard

KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "github": github.KIND,
        "gitlab": gitlab.KIND,
        "forgejo": forgejo.KIND,
        "gitea": gitea.KIND,
        "jira": jira.KIND,
        "linear": linear.KIND,
        "standard": standard.KIND,
        "bearer": bearer.KIND,
    }
)
