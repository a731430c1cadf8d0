from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bot.health import Health
from bot.llm import ModelFailed, Reply
from bot.metrics import MeasuredModel, Metrics
from crdt import Delivery, PipelineEvent, Statistics, Store
from tests.bot.edge import ALICE, ROOM, ToldModel, message


def series(metrics: Metrics, statistics: Statistics | None = None, health: Health | None = None) -> dict[str, float]:
    """Every series as a Prometheus would read it: `name{label=value}` to its number."""
    found = {}
    for family in text_string_to_metric_families(metrics.text(statistics, health or Health()).decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_what_happens_is_counted_under_its_outcome() -> None:
    metrics = Metrics()
    metrics.turn_ended("answered")
    metrics.turn_ended("answered")
    metrics.turn_ended("failed")
    metrics.delivery_ended("sent")
    metrics.decrypt_failed()
    metrics.gap_recorded()
    found = series(metrics)
    assert found["musher_turns_total{outcome=answered}"] == 2
    assert found["musher_turns_total{outcome=failed}"] == 1
    assert found["musher_turns_total{outcome=poisoned}"] == 0, "a series is there before its first event"
    assert found["musher_deliveries_total{outcome=sent}"] == 1
    assert found["musher_decrypt_failures_total"] == 1
    assert found["musher_gaps_total"] == 1


async def test_the_model_is_timed_and_its_tokens_are_counted() -> None:
    now = 0.0

    class SlowModel(ToldModel):
        async def reply(self, messages: object) -> Reply:
            nonlocal now
            now += 3.0
            return Reply("text", 100, 7)

    metrics, health = Metrics(), Health()
    health.register("model", required=False)
    model = MeasuredModel(SlowModel(), metrics, health, clock=lambda: now)
    assert (await model.reply([])).text == "text"
    await model.reply([])
    found = series(metrics)
    assert found["musher_model_seconds_sum"] == 6
    assert found["musher_model_seconds_count"] == 2
    assert found["musher_model_seconds_bucket{le=2.5}"] == 0
    assert found["musher_model_seconds_bucket{le=5.0}"] == 2
    assert found["musher_model_tokens_total{direction=input}"] == 200
    assert found["musher_model_tokens_total{direction=output}"] == 14
    assert health.states()["model"].state == "ok"


async def test_a_model_that_fails_is_counted_by_kind_and_shows_in_its_part() -> None:
    told, metrics, health = ToldModel(), Metrics(), Health()
    health.register("model", required=False)
    model = MeasuredModel(told, metrics, health)
    told.tell(ModelFailed("rate_limited", "model 'x' is busy"), ModelFailed("context_overflow", "too long"))
    with pytest.raises(ModelFailed):
        await model.reply([])
    assert health.states()["model"].last_error == "model 'x' is busy"
    assert health.ready(), "the service takes in what comes all the same"
    with pytest.raises(ModelFailed):
        await model.reply([])
    assert health.states()["model"].last_error == "model 'x' is busy", "one conversation is too long for it, no more"
    await model.reply([])
    assert health.states()["model"].state == "ok"
    found = series(metrics)
    assert found["musher_model_failures_total{kind=rate_limited}"] == 1
    assert found["musher_model_failures_total{kind=context_overflow}"] == 1
    assert found["musher_model_seconds_count"] == 1


async def test_the_store_is_shown_as_it_is_and_names_nobody(tmp_path: Path) -> None:
    health = Health("sync")
    async with Store.open(tmp_path / "musher.db", segment_events=2) as store:
        await store.append_events([PipelineEvent("a-story", "a", "b", "Moved")] * 5)
        await store.admit([message("$1", "a secret"), message("$2", context=True)])
        await store.settle([], "queued", [Delivery("d1", ROOM, '{"body":"another secret"}')])
        metrics = Metrics()
        statistics = await store.statistics()
        found = series(metrics, statistics, health)
        text = metrics.text(statistics, health).decode()
    assert (found["musher_log_events"], found["musher_log_segments"], found["musher_log_head_seq"]) == (5, 3, 5)
    assert (found["musher_inbox_messages"], found["musher_inbox_context_messages"]) == (1, 1)
    assert found["musher_outbox_deliveries"] == 1
    assert found["musher_store_commits_total"] == statistics.commits > 0
    assert found["musher_store_database_bytes"] + found["musher_store_wal_bytes"] > 0
    assert found["musher_ready"] == 0
    assert found["musher_part_ok{part=sync}"] == 0
    assert not [secret for secret in (ROOM, ALICE, "secret", "a-story", "$1", "d1") if secret in text]


def test_a_store_that_can_not_be_read_leaves_the_other_metrics() -> None:
    found = series(Metrics(), None, Health("sync"))
    assert "musher_inbox_messages" not in found
    assert "musher_sync_age_seconds" in found
    assert "musher_turns_total{outcome=answered}" in found
    assert found["process_resident_memory_bytes"] > 0


def test_the_age_of_the_sync_rises_until_the_next() -> None:
    now = 1000.0
    health = Health("sync", clock=lambda: now)
    metrics = Metrics()
    now += 30
    assert series(metrics, None, health)["musher_sync_age_seconds"] == 30
    health.ok("sync")
    now += 7
    found = series(metrics, None, health)
    assert (found["musher_sync_age_seconds"], found["musher_ready"], found["musher_part_ok{part=sync}"]) == (7, 1, 1)
