"""What the service counts and measures, for Prometheus. No label holds a room, a person or anything that they wrote."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bot.deliver import DeliveryOutcome
from bot.health import Health
from bot.llm import Model, ModelFailed, Reply
from bot.llm.port import FailureKind
from bot.prompt import ModelMessage
from bot.turn import TurnOutcome
from crdt import Statistics

# A series of its own for the start of each counter says nothing here: all begin with the process.
disable_created_metrics()  # type: ignore[no-untyped-call]

_MODEL_SECONDS: Final = (0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_NOT_THE_MODELS_FAULT: Final = ("context_overflow", "refused")
"""Failures that a conversation meets, while the model answers others."""


class Metrics:
    """The service's counters, and the state of its store and parts as it was last shown."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._turns = self._counter("musher_turns", "Turns that ended, by outcome.", outcome=get_args(TurnOutcome))
        self._deliveries = self._counter(
            "musher_deliveries", "Deliveries that left the outbox, by outcome.", outcome=get_args(DeliveryOutcome)
        )
        self._model_seconds = Histogram(
            "musher_model_seconds",
            "Seconds from asking the model to its reply, repeated attempts included.",
            buckets=_MODEL_SECONDS,
            registry=self._registry,
        )
        self._model_tokens = self._counter(
            "musher_model_tokens", "Tokens as the model's provider counts them.", direction=("input", "output")
        )
        self._model_failures = self._counter(
            "musher_model_failures", "Calls of the model without a reply, by kind.", kind=get_args(FailureKind)
        )
        self._decrypt_failures = Counter(
            "musher_decrypt_failures", "Messages that could not be decrypted.", registry=self._registry
        )
        self._gaps = Counter(
            "musher_gaps",
            "Gaps put into the event log: each stands for events that were lost.",
            registry=self._registry,
        )
        self._shown = _Shown()
        self._registry.register(self._shown)
        ProcessCollector(registry=self._registry)

    def _counter(self, name: str, documentation: str, **label: Sequence[str]) -> Counter:
        """A counter with one label whose series are all there from the beginning, at 0."""
        ((key, values),) = label.items()
        counter = Counter(name, documentation, [key], registry=self._registry)
        for value in values:
            counter.labels(value)
        return counter

    def turn_ended(self, outcome: TurnOutcome) -> None:
        """A turn is over."""
        self._turns.labels(outcome).inc()

    def delivery_ended(self, outcome: DeliveryOutcome) -> None:
        """A delivery has left the outbox."""
        self._deliveries.labels(outcome).inc()

    def model_replied(self, seconds: float, reply: Reply) -> None:
        """The model has answered."""
        self._model_seconds.observe(seconds)
        self._model_tokens.labels("input").inc(reply.input_tokens or 0)
        self._model_tokens.labels("output").inc(reply.output_tokens or 0)

    def model_failed(self, kind: FailureKind) -> None:
        """The model gave no reply."""
        self._model_failures.labels(kind).inc()

    def decrypt_failed(self) -> None:
        """A message could not be decrypted."""
        self._decrypt_failures.inc()

    def gap_recorded(self) -> None:
        """A gap sentinel stands in the event log."""
        self._gaps.inc()

    def text(self, statistics: Statistics | None, health: Health) -> bytes:
        """All metrics in Prometheus' text format; those of the store are left out where it can't be read."""
        self._shown.statistics, self._shown.health = statistics, health
        return generate_latest(self._registry)

    def families(self) -> Iterable[Metric]:
        """Every family of metrics, with the series that are there from the beginning."""
        self._shown.statistics, self._shown.health = None, Health("sync")
        return self._registry.collect()


_STORE: Final[Sequence[tuple[str, str, Callable[[Statistics], float]]]] = (
    ("musher_inbox_messages", "Messages that wait for an answer.", lambda s: s.inbox.waiting),
    ("musher_inbox_oldest_seconds", "How long the oldest of them has waited.", lambda s: s.inbox.oldest_s),
    ("musher_inbox_context_messages", "Messages that go to the model with the next turn.", lambda s: s.context),
    ("musher_outbox_deliveries", "Deliveries that are not sent yet.", lambda s: s.outbox.waiting),
    ("musher_outbox_oldest_seconds", "How long the oldest of them has waited.", lambda s: s.outbox.oldest_s),
    ("musher_outbox_in_doubt_deliveries", "Those of them that may have been sent already.", lambda s: s.in_doubt),
    ("musher_log_events", "Events that the log keeps.", lambda s: s.events),
    ("musher_log_segments", "Segments that they stand in.", lambda s: s.segments),
    ("musher_log_head_seq", "Seq of the newest event; it rises by one with each.", lambda s: s.head),
    ("musher_sessions", "Sessions that the store keeps.", lambda s: s.sessions),
    ("musher_store_database_bytes", "Size of the database file.", lambda s: s.database_bytes),
    ("musher_store_wal_bytes", "Size of the write-ahead log beside it.", lambda s: s.wal_bytes),
    ("musher_store_free_bytes", "Room left on their disk.", lambda s: s.free_bytes),
)  # fmt: skip


class _Shown(Collector):
    """What is read from the store and the parts at the moment of the question."""

    def __init__(self) -> None:
        self.statistics: Statistics | None = None
        self.health = Health()

    def collect(self) -> Iterator[Metric]:
        states = self.health.states()
        if "sync" in states:
            age = self.health.age_s("sync")
            yield GaugeMetricFamily("musher_sync_age_seconds", "Seconds since the newest sync was taken in.", age)
        yield GaugeMetricFamily("musher_ready", "1 while /readyz answers 200, else 0.", float(self.health.ready()))
        parts = GaugeMetricFamily("musher_part_ok", "1 while a part is well, else 0.", labels=["part"])
        for name, state in states.items():
            parts.add_metric([name], float(state.state == "ok"))
        yield parts
        found = self.statistics
        for name, documentation, value in _STORE:
            yield GaugeMetricFamily(name, documentation, None if found is None else value(found))
        commits = None if found is None else found.commits
        yield CounterMetricFamily("musher_store_commits", "Commits in the database's whole life.", commits)

    def describe(self) -> list[Metric]:
        """Nothing is promised: what there is depends on the moment."""
        return []


class MeasuredModel:
    """A model whose calls are counted and timed, and whose failures show in `health` as the part "model"."""

    def __init__(
        self, model: Model, metrics: Metrics, health: Health, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._model = model
        self._metrics = metrics
        self._health = health
        self._clock = clock

    async def reply(self, messages: Sequence[ModelMessage]) -> Reply:
        """Answer a conversation, as the model does.

        Raises:
            ModelFailed: the model's.
        """
        began = self._clock()
        try:
            reply = await self._model.reply(messages)
        except ModelFailed as failure:
            self._metrics.model_failed(failure.kind)
            if failure.kind not in _NOT_THE_MODELS_FAULT:
                self._health.failing("model", failure.detail)
            raise
        self._metrics.model_replied(self._clock() - began, reply)
        self._health.ok("model")
        return reply
