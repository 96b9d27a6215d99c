"""The coordinator's metrics: the expert tier as operators see it, its rebalances, and the control plane.

Called once a check period with the status that the console shows too, so that both say the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from cluster.experts_status import BalancerStatus, ExpertTierStatus, LayerStatus, Outcome, Phase, RebalanceRecord
from cluster.view import ClusterView
from ops.telemetry.meter import Meter
from ops.telemetry.metrics import METRICS


@dataclass
class CoordinatorCounts:
    """Since birth. reports: by tier. decisions: maps considered, by what came of it."""

    leases_expired: int = 0
    takeovers: int = 0
    reports: Counter[str] = field(default_factory=Counter)


class CoordinatorMetrics:
    """Call `record` period by period."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._last_started_at = 0.0  # of the rebalances that were counted
        outcomes, triggers = (label.values for label in METRICS["step35_rebalances_total"].labels)
        for outcome, trigger in product(outcomes, triggers):  # alerts ask by how much one has grown
            meter.counter("step35_rebalances_total", outcome=outcome, trigger=trigger)

    def record(
        self, view: ClusterView, status: ExpertTierStatus, decisions: Mapping[str, int], counts: CoordinatorCounts
    ) -> None:
        """decisions: maps considered since birth, by what came of it."""
        self._record_tier(status)
        self._record_balancer(status.balancer, view)
        self._record_members(view, counts)
        for decision, number in decisions.items():
            self._meter.counter("step35_balancer_decisions_total", decision=decision).raise_to(number)
        for record in status.balancer.history:
            if record.started_at > self._last_started_at:
                self._record_rebalance(record)

    def _record_tier(self, status: ExpertTierStatus) -> None:
        has_load = status.window_tokens > 0.0
        for layer in status.layers:
            self._record_layer(layer, has_load=has_load)
        estimates = {"predicted": status.predicted_us, "best": status.best_us}
        for estimate, microseconds in estimates.items():
            seconds = 1e-6 * microseconds if has_load else None
            self._meter.gauge("step35_expert_time_per_step_seconds", estimate=estimate).set(seconds)
        self._set("step35_map_epoch", status.map_epoch)
        self._set("step35_expert_slots_free", status.num_free_slots)
        self._set("step35_expert_pins", len(status.pinned))
        self._set("step35_load_drifting", bool(status.drift))

    def _record_layer(self, layer: LayerStatus, *, has_load: bool) -> None:
        meter, layer_id = self._meter, layer.layer_id
        meter.gauge("step35_balancedness_ratio", layer=layer_id).set(layer.balancedness if has_load else None)
        for measure in ("mass", "entropy", "margin"):
            value = getattr(layer, measure) if has_load else None
            meter.gauge("step35_gate_confidence_ratio", layer=layer_id, measure=measure).set(value)
        for extreme, ratio in (("min", layer.norm_low), ("max", layer.norm_high)):
            meter.gauge("step35_activation_norm_ratio", layer=layer_id, extreme=extreme).set(ratio)
        meter.gauge("step35_layer_drifting", layer=layer_id).set(float(layer.is_drifting))

    def _record_balancer(self, balancer: BalancerStatus, view: ClusterView) -> None:
        for phase in Phase:
            self._meter.gauge("step35_balancer_phase", phase=str(phase)).set(float(balancer.phase is phase))
        self._set("step35_balancer_stalled", balancer.is_stalled)
        self._set("step35_balancer_paused", view.orders.is_paused)

    def _record_rebalance(self, record: RebalanceRecord) -> None:
        meter = self._meter
        self._last_started_at = record.started_at
        meter.counter("step35_rebalances_total", outcome=str(record.outcome), trigger=record.trigger).add()
        meter.histogram("step35_rebalance_seconds").record(record.seconds)
        meter.gauge("step35_rebalance_predicted_gain_ratio").set(record.gain)
        if record.outcome is Outcome.DONE:
            meter.counter("step35_balancer_moves_total").add(record.num_moves)

    def _record_members(self, view: ClusterView, counts: CoordinatorCounts) -> None:
        meter = self._meter
        self._set("step35_view_id", view.view_id)
        self._set("step35_leases_held", len(view.shards))
        self._set("step35_leases_free", len(view.missing_ranks))
        ready = {"attention": sum(member.is_ready for member in view.attention.values()), "expert": len(view.shards)}
        for tier, members in (("attention", len(view.attention)), ("expert", len(view.shards))):
            meter.gauge("step35_members", tier=tier).set(members)
            meter.gauge("step35_members_ready", tier=tier).set(ready[tier])
            meter.counter("step35_reports_total", tier=tier).raise_to(counts.reports[tier])
        meter.counter("step35_leases_expired_total").raise_to(counts.leases_expired)
        meter.counter("step35_coordinator_restarts_total").raise_to(counts.takeovers)

    def _set(self, name: str, value: Any) -> None:
        self._meter.gauge(name).set(float(value))
