"""The public HTTP listener: pipeline events come in here, and the platform asks here whether the service is well."""

from bot.ingest.losses import AppendGap
from bot.ingest.server import IngestServer
from bot.ingest.source import Source, compile_sources
from bot.ingest.storing import Append

__all__ = ["Append", "AppendGap", "IngestServer", "Source", "compile_sources"]
