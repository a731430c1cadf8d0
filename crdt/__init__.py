"""The store: what is true and survives a power cut. No network, no Matrix, no LLM."""

from crdt.audit import FOLDED, audit_line, parse_audit_line, validate_event
from crdt.care.backup import back_up_database
from crdt.care.compact import Compacted, compact_database
from crdt.care.progress import Progress
from crdt.care.restore import Restored, restore_database
from crdt.care.verify import Verification, verify_database
from crdt.errors import (
    BackupExists,
    CrdtError,
    InvalidEvent,
    MessageChanged,
    SledMismatch,
    StoreBusy,
    StoreClosed,
    StoreDamaged,
    StoreFull,
    StoreNewer,
    StoreUnavailable,
    TurnOpen,
    UnknownScope,
    UnknownTurn,
)
from crdt.model import (
    GAP_PIPELINE_EVENT,
    SINGLE_SLED,
    Appended,
    Delivery,
    Edit,
    EventBatch,
    LlmSessionView,
    Message,
    PipelineEvent,
    RecordedEvent,
    TakenBack,
    TranscriptEntry,
    Turn,
)
from crdt.reader import SessionSummary, StoreReader
from crdt.settings import RESTORED_AT_MS
from crdt.statistics import Statistics
from crdt.store import Store
from crdt.unheard import fold_lines, newest_from

__all__ = [
    "FOLDED",
    "GAP_PIPELINE_EVENT",
    "RESTORED_AT_MS",
    "SINGLE_SLED",
    "Appended",
    "BackupExists",
    "Compacted",
    "CrdtError",
    "Delivery",
    "Edit",
    "EventBatch",
    "InvalidEvent",
    "LlmSessionView",
    "Message",
    "MessageChanged",
    "PipelineEvent",
    "Progress",
    "RecordedEvent",
    "Restored",
    "SessionSummary",
    "SledMismatch",
    "Statistics",
    "Store",
    "StoreBusy",
    "StoreClosed",
    "StoreDamaged",
    "StoreFull",
    "StoreNewer",
    "StoreReader",
    "StoreUnavailable",
    "TakenBack",
    "TranscriptEntry",
    "Turn",
    "TurnOpen",
    "UnknownScope",
    "UnknownTurn",
    "Verification",
    "audit_line",
    "back_up_database",
    "compact_database",
    "fold_lines",
    "newest_from",
    "parse_audit_line",
    "restore_database",
    "validate_event",
    "verify_database",
]
