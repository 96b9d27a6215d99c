"""The metrics of attention actors, expert ranks and the coordinator: what is counted arrives under its name."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actors.attention.counts import AttentionCounts, ExchangeTotals, StepRecord
from actors.cache.blocks import PoolUse
from actors.messages import DraftCounts
from actors.speculative.stats import SpeculationCounts
from cluster.balancer import Balancer
from cluster.balancing import BalancingConfig
from cluster.experts_status import Outcome, RebalanceRecord
from cluster.membership import ProcessReport
from cluster.metrics.attention import AttentionMetrics
from cluster.metrics.coordinator import CoordinatorCounts, CoordinatorMetrics
from cluster.metrics.expert import ExpertMetrics
from cluster.notices import Notice
from cluster.operator_picture import MAX_EVENTS, OperatorPicture, TierNow, map_document, rounded
from cluster.view import ClusterView
from ops.telemetry.matrix import ExpertMatrix
from ops.telemetry.metrics import METRICS
from ops.telemetry.plain import plain_metrics, plain_registry
from ops.telemetry.recording import RecordingMeter
from ops.telemetry.spec import Kind, Owner
from routing.experts import linear_expert_map
from routing.load.expert_sample import ExpertSample

LAYER_IDS = (3, 4)
EXCHANGES = ExchangeTotals(7, 700, 350, 0.5, 2.0, {"rank_lost": 2})
DRAFTS = SpeculationCounts(DraftCounts(10, (10, 8), (6, 3)), {0: 1, 2: 9}, {"kept": 4, "probe": 1}, 0.25)
COUNTS = AttentionCounts(
    num_running=3,
    num_waiting=2,
    kv_usage=0.5,
    pools={"full": PoolUse(4, 8)},
    num_preemptions=1,
    prefix_queries=100,
    prefix_hits=40,
    step_retries=2,
    given_up=1,
    exchanges=EXCHANGES,
    speculation=DRAFTS,
)


def _points(meter: RecordingMeter) -> dict[str, Any]:
    """One entry for each point: name, or name and labels."""
    return {
        " ".join([name, *labels]): value
        for name, points in plain_metrics(meter.families()).items()
        for labels, value in points
    }


def test_what_an_attention_actor_counts_is_recorded() -> None:
    """Totals are raised, histograms filled, and what is left of the steps counts as attention."""
    meter = RecordingMeter(Owner.ATTENTION)
    metrics = AttentionMetrics(meter, "shm")
    metrics.record(COUNTS, [StepRecord(2.0, 8, 1), StepRecord(3.0, 4, 2)], [1.5], [0.1, 0.2])
    points = _points(meter)
    expected = {
        "step35_requests_running": 3,
        "step35_requests_waiting": 2,
        "step35_kv_cache_usage_ratio": 0.5,
        "step35_kv_blocks_used full": 4,
        "step35_kv_blocks full": 8,
        "step35_preemptions_total": 1,
        "step35_prefix_cache_query_tokens_total": 100,
        "step35_prefix_cache_hit_tokens_total": 40,
        "step35_step_retries_total": 2,
        "step35_recoveries_given_up_total": 1,
        "step35_exchanges_total shm": 7,
        "step35_exchange_bytes_total sent": 700,
        "step35_exchange_bytes_total received": 350,
        "step35_exchange_failures_total rank_lost": 2,
        "step35_step_part_seconds_total dispatch": 0.5,
        "step35_step_part_seconds_total combine_wait": 2.0,
        "step35_step_part_seconds_total draft": 0.25,
        "step35_step_part_seconds_total attention": 2.25,
        "step35_steps_total 1": 1,
        "step35_steps_total 2": 1,
        "step35_verifications_total": 10,
        "step35_draft_tokens_total 0": 10,
        "step35_draft_tokens_total 1": 8,
        "step35_accepted_tokens_total 0": 6,
        "step35_accepted_tokens_total 1": 3,
        "step35_draft_length_choices_total 0": 1,
        "step35_draft_length_choices_total 2": 9,
        "step35_draft_length_reasons_total kept": 4,
        "step35_draft_length_reasons_total probe": 1,
        "step35_mean_acceptance_length_tokens": 1.9,
    }
    assert {name: points[name] for name in expected} == pytest.approx(expected)
    for name, total in (
        ("step_seconds", 5.0),
        ("step_rows", 12),
        ("recovery_seconds", 1.5),
        ("queue_time_seconds", 0.3),
    ):
        assert points[f"step35_{name}"]["total"] == pytest.approx(total)
    assert points["step35_telemetry_dropped_total"] == 0


def test_counters_only_grow_and_the_mean_length_is_of_the_last_period() -> None:
    """Four more verifications with two more accepted drafts: 1.5 tokens each; then nothing, and nothing is shown."""
    meter = RecordingMeter(Owner.ATTENTION)
    metrics = AttentionMetrics(meter, "shm")
    metrics.record(COUNTS, [], [], [])
    later = replace(DRAFTS, drafts=DraftCounts(14, (14, 12), (8, 3)))
    metrics.record(replace(COUNTS, speculation=later), [], [], [])
    assert _points(meter)["step35_mean_acceptance_length_tokens"] == pytest.approx(1.5)
    assert _points(meter)["step35_verifications_total"] == 14
    metrics.record(replace(COUNTS, speculation=later), [], [], [])
    assert "step35_mean_acceptance_length_tokens" not in _points(meter)


def test_what_an_expert_rank_computes_is_recorded_by_layer() -> None:
    """Two reports add up; refusals are totals; a report without work changes nothing."""
    meter = RecordingMeter(Owner.EXPERT)
    metrics = ExpertMetrics(meter, LAYER_IDS)
    sample = ExpertSample.empty(2, 4)
    sample.rows[:], sample.distinct[:], sample.num_calls[:] = [5, 6], [2, 3], [1, 1]
    sample.pairs[:], sample.seconds[:] = 2.0, 0.25
    metrics.record(sample, {"kernel": 1})
    metrics.record(sample, {"kernel": 1})
    metrics.record(None, {"kernel": 3})
    points = _points(meter)
    expected = {
        "step35_expert_rows_total 3": 10,
        "step35_expert_rows_total 4": 12,
        "step35_expert_pairs_total 3": 16,
        "step35_expert_touched_total 4": 6,
        "step35_expert_batches_total 3": 2,
        "step35_expert_busy_seconds_total": 4.0,
        "step35_frames_refused_total kernel": 3,
    }
    assert {name: points[name] for name in expected} == pytest.approx(expected)


# --- The coordinator -------------------------------------------------------------------------------------------------


def _tier(history: tuple[RebalanceRecord, ...] = ()) -> TierNow:
    """A tier of two layers, eight experts and two ranks, before its first token."""
    view = ClusterView(5, linear_expert_map(2, 8, 2, num_redundant_slots=1))
    balancer = Balancer(BalancingConfig(), view.expert_map, layer_ids=LAYER_IDS)
    status = balancer.status(view, {}, 0.0)
    status = replace(status, balancer=replace(status.balancer, history=history))
    return TierNow(view, status, balancer.load(0.0), balancer.load_sample(0.0), balancer.decisions)


def _record(started_at: float, outcome: Outcome) -> RebalanceRecord:
    return RebalanceRecord(
        started_at=started_at,
        trigger="load",
        num_moves=4,
        num_stages=1,
        seconds=2.0,
        gain=0.25,
        balancedness_before=0.5,
        balancedness_planned=0.9,
        balancedness_after=None,
        outcome=outcome,
        reason="",
    )


def test_the_coordinator_counts_each_rebalance_once() -> None:
    """A record stays in the history for long; what was abandoned moved nothing for good."""
    meter = RecordingMeter(Owner.COORDINATOR)
    metrics = CoordinatorMetrics(meter)
    first, second = _record(10.0, Outcome.DONE), _record(20.0, Outcome.ABANDONED)
    for history in ((first,), (first,), (first, second), (first, second)):
        tier = _tier(history)
        metrics.record(tier.view, tier.status, {"keep": 3}, CoordinatorCounts(leases_expired=2, takeovers=1))
    points = _points(meter)
    expected = {
        "step35_rebalances_total done load": 1,
        "step35_rebalances_total abandoned load": 1,
        "step35_balancer_moves_total": 4,
        "step35_balancer_decisions_total keep": 3,
        "step35_balancer_phase idle": 1,
        "step35_balancer_phase preparing": 0,
        "step35_rebalance_predicted_gain_ratio": 0.25,
        "step35_leases_expired_total": 2,
        "step35_coordinator_restarts_total": 1,
        "step35_leases_free": 2,
        "step35_view_id": 5,
        "step35_expert_slots_free": 4,
    }
    assert {name: points[name] for name in expected} == pytest.approx(expected)
    assert points["step35_rebalance_seconds"]["total"] == pytest.approx(4.0)


def test_before_the_first_token_nothing_is_said_of_load() -> None:
    """A balance of nothing would look like a bad one."""
    meter = RecordingMeter(Owner.COORDINATOR)
    tier = _tier()
    CoordinatorMetrics(meter).record(tier.view, tier.status, {}, CoordinatorCounts())
    names = {family.spec.name for family in meter.families()}
    assert "step35_map_epoch" in names
    assert not {"step35_balancedness_ratio", "step35_gate_confidence_ratio"} & names


def test_the_picture_shows_processes_heard_lately_and_the_last_events() -> None:
    """A process that fell silent goes; the coordinator's own report is always there; events are bounded."""
    meter = RecordingMeter(Owner.COORDINATOR)
    own = ProcessReport("c0", "coordinator", "h", None, plain_metrics(meter.families()))
    picture = OperatorPicture("m", meter, own_report=lambda: own, wall_clock=lambda: 99.0)
    picture.note_process(ProcessReport("e0", "expert", "h", 3, {}), now=0.0)
    picture.note_process(ProcessReport("g0", "gateway", "h", None, {}), now=10.0)
    for number in range(MAX_EVENTS + 5):
        picture.note(Notice("drift", f"number {number}"))
    state = picture.state(_tier(), now=12.0)
    assert [(m["member"], m["ep_rank"], m["is_ready"]) for m in state["members"]] == [
        ("c0", None, True),
        ("e0", 3, False),
        ("g0", None, True),
    ]
    assert [m["member"] for m in picture.state(_tier(), now=20.0)["members"]] == ["c0", "g0"]
    assert len(state["events"]) == MAX_EVENTS
    assert state["events"][-1] == {"time": 99.0, "kind": "drift", "text": f"number {MAX_EVENTS + 4}", "member": None}
    assert state["model"] == {"name": "m", "layer_ids": [3, 4], "num_logical_experts": 8, "ep_size": 2}


def test_the_matrix_is_given_every_layer_and_expert() -> None:
    """Once there is load."""
    matrix, tier = ExpertMatrix(LAYER_IDS, 8), _tier()
    picture = OperatorPicture("m", RecordingMeter(Owner.COORDINATOR), matrix=matrix)
    picture.record(tier, CoordinatorCounts())
    assert matrix.text({}) == b""
    tier.sample.tokens[:] = 2.0
    picture.record(replace(tier, sample=replace(tier.sample, num_tokens=4.0, num_steps=2.0)), CoordinatorCounts())
    text = matrix.text({"member": "c0"}).decode()
    assert 'step35_expert_load_tokens{expert="7",layer="4",member="c0"} 1.0' in text
    assert text.count("# TYPE") == 3


def test_loads_are_rounded_to_three_digits() -> None:
    """Relative to their size; zero stays zero."""
    load = np.array([[0.0, 1.23456, 1234.56], [0.00123456, 99.96, 1e-12]])
    assert rounded(load)[0] == pytest.approx([0.0, 1.23, 1230.0])
    assert rounded(load)[1] == pytest.approx([0.00123, 100.0, 0.0], abs=1e-9)


def test_the_map_is_told_slot_by_slot() -> None:
    """As the page reads it."""
    document: Mapping[str, Any] = map_document(_tier().view)
    assert document["slots_per_rank"] == 5
    assert document["physical_to_logical"][0] == [0, 1, 2, 3, -1, 4, 5, 6, 7, -1]


def test_the_registry_for_pages_names_every_metric() -> None:
    """With labels in the order of the points, and buckets of histograms alone."""
    registry = plain_registry()
    assert registry.keys() == METRICS.keys()
    assert registry["step35_gate_confidence_ratio"]["labels"] == ["layer", "measure"]
    assert all(bool(each["buckets"]) == (each["kind"] == Kind.HISTOGRAM) for each in registry.values())
