"""The public HTTP listener: pipeline events come in here, and the platform asks here whether the service is well."""

from bot.ingest.events import Append
from bot.ingest.server import IngestServer, ListenFailed

__all__ = ["Append", "IngestServer", "ListenFailed"]
