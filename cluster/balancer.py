"""Balancer: decides when experts move, and has the rebalancer move them. Owns the load picture and the decisions.

Reports and views go in; the next view, proposals and the operator's status come out. Time is given with each call. The
operator's orders live in the view, so that they outlive this process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from cluster.balancing import BalancingConfig
from cluster.errors import InvalidOrder
from cluster.experts_status import BalancerStatus, ExpertStatus, ExpertTierStatus, Proposal
from cluster.load_picture import LoadPicture
from cluster.membership import AttentionReport, ExpertReport, MemberReport
from cluster.rebalancer import Rebalance, Rebalancer, Reports, phase_of
from cluster.tier_status import expert_status, tier_status
from cluster.view import ClusterView, with_orders
from routing.experts import ExpertMap
from routing.placement.contract import Pin, PlacementProblem, check_pins, placement_policy
from routing.placement.decide import Decision, DecisionSettings, Pace, decide
from routing.placement.diff import Migration, migration
from routing.placement.score import balancedness

logger = logging.getLogger(__name__)

CONSIDER_S = 5.0  # a rebalance is considered at least this often, so that drift is answered soon


@dataclass(frozen=True)
class Plan:
    """What a rebalance would do, and whether it is worth it."""

    decision: Decision
    migration: Migration


class Balancer:
    """One for a coordinator's life. All methods belong to its event loop."""

    def __init__(
        self,
        config: BalancingConfig,
        expert_map: ExpertMap,
        *,
        layer_ids: tuple[int, ...] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """layer_ids: the model's number of each MoE layer; None counts MoE layers from 0."""
        self._config = config
        self.layer_ids = layer_ids or tuple(range(expert_map.num_moe_layers))
        self._picture = LoadPicture(config, expert_map)
        self._rebalancer = Rebalancer(config.stage_timeout_s, wall_clock)
        self._considered_at: float | None = None
        self._finished_at: float | None = None
        self._last_decision = "nothing has been decided yet"
        self._no_load = np.zeros((expert_map.num_moe_layers, expert_map.num_logical_experts))

    def note(self, report: MemberReport, ep_rank: int | None, now: float) -> None:
        """What a member measured. ep_rank: of an expert rank."""
        if isinstance(report, AttentionReport):
            self._picture.note_attention(report, now)
        elif ep_rank is not None:
            self._picture.note_expert(report, ep_rank, now)

    def advance(self, view: ClusterView, reports: Reports, now: float) -> ClusterView:
        """The view after everything that can be done now. reports: the latest of each living member."""
        was_busy = self._rebalancer.is_busy
        view = self._rebalancer.advance(view, reports, now)
        if was_busy and not self._rebalancer.is_busy:
            self._finished_at = now
            self._picture.rebase(now)
        self._note_measured(now)
        if self._is_due(view, now):
            self._considered_at = now
            plan = self._plan(view, now, is_ordered=False)
            self._last_decision = plan.decision.reason
            if plan.decision.should_rebalance:
                self._begin(plan, "drift" if self._picture.drift.is_drifting else "load", now)
                view = self._rebalancer.advance(view, reports, now)
        return view

    def propose(self, view: ClusterView, now: float, *, is_dry_run: bool, trigger: str = "manual") -> Proposal:
        """A rebalance by the operator's hand, which begins with the next `advance` unless it is a dry run. Raises
        InvalidOrder when there can be none now."""
        self._check_can_begin(view, now)
        try:
            plan = self._plan(view, now, is_ordered=True)
        except ValueError as error:
            raise InvalidOrder(f"There is no such placement: {error}.") from error
        if plan.decision.should_rebalance and not is_dry_run:
            self._last_decision = plan.decision.reason
            self._begin(plan, trigger, now)
        return _proposal(plan, is_dry_run=is_dry_run)

    def with_pin(
        self, view: ClusterView, layer_id: int, logical_id: int, ep_ranks: tuple[int, ...] | None
    ) -> ClusterView:
        """The view after an order to keep an expert's copies on these ranks, by default where they are. Raises
        InvalidOrder."""
        idx = self._moe_layer_idx(layer_id)
        others = tuple(pin for pin in view.orders.pins if (pin.moe_layer_idx, pin.logical_id) != (idx, logical_id))
        try:
            check_pins((Pin(idx, logical_id, ep_ranks or (0,)),), view.expert_map)
            ranks = ep_ranks or expert_status(view, self._no_load, self.layer_ids, idx, logical_id).ep_ranks
            pins = (*others, Pin(idx, logical_id, tuple(sorted(ranks))))
            check_pins(pins, view.expert_map)
        except ValueError as error:
            raise InvalidOrder(f"This pin cannot be: {error}.") from error
        return with_orders(view, replace(view.orders, pins=pins))

    def without_pin(self, view: ClusterView, layer_id: int, logical_id: int) -> ClusterView:
        """The view after the balancer was left free to move an expert again. Raises InvalidOrder where it was not
        pinned."""
        idx = self._moe_layer_idx(layer_id)
        pins = tuple(pin for pin in view.orders.pins if (pin.moe_layer_idx, pin.logical_id) != (idx, logical_id))
        if pins == view.orders.pins:
            raise InvalidOrder(f"Expert {logical_id} of layer {layer_id} is not pinned.")
        return with_orders(view, replace(view.orders, pins=pins))

    def expert(self, view: ClusterView, layer_id: int, logical_id: int, now: float) -> ExpertStatus:
        """One expert as an operator sees it. Raises InvalidOrder for a layer or expert that is none."""
        idx = self._moe_layer_idx(layer_id)
        if not 0 <= logical_id < view.expert_map.num_logical_experts:
            raise InvalidOrder(f"Expert {logical_id} is outside 0..{view.expert_map.num_logical_experts - 1}.")
        return expert_status(view, self._picture.load(now), self.layer_ids, idx, logical_id)

    def status(self, view: ClusterView, reports: Reports, now: float) -> ExpertTierStatus:
        """What an operator is shown."""
        return tier_status(view, self._picture, self.layer_ids, self.balancer_status(view, reports, now), now)

    def balancer_status(self, view: ClusterView, reports: Reports, now: float) -> BalancerStatus:
        """What the balancer does."""
        stage, num_stages = self._rebalancer.stage()
        return BalancerStatus(
            mode=self._config.mode,
            is_paused=view.orders.is_paused,
            phase=phase_of(view),
            phase_seconds=self._rebalancer.phase_seconds(now),
            stage=stage,
            num_stages=num_stages,
            progress=_progress(reports),
            is_stalled=self._rebalancer.is_stalled(now),
            last_decision=self._last_decision,
            history=self._rebalancer.history,
        )

    def _is_due(self, view: ClusterView, now: float) -> bool:
        if self._config.mode != "auto" or view.orders.is_paused or self._rebalancer.is_busy or view.missing_ranks:
            return False
        drifting = self._picture.drift.is_drifting
        interval_s = self._config.drift_interval_s if drifting else self._config.interval_s
        is_soon = self._considered_at is not None and now - self._considered_at < min(interval_s, CONSIDER_S)
        return not is_soon and self._picture.has_enough(now)

    def _check_can_begin(self, view: ClusterView, now: float) -> None:
        if self._config.mode == "off":
            raise InvalidOrder("The balancer is off: set balancing.mode to manual or auto.")
        if self._rebalancer.is_busy:
            raise InvalidOrder("A rebalance is under way; wait for its end.")
        if view.missing_ranks:
            raise InvalidOrder(f"Nobody serves EP ranks {', '.join(map(str, view.missing_ranks))}; wait for them.")
        if self._picture.window(now).num_tokens <= 0.0:
            raise InvalidOrder("No load has been measured yet; send some requests first.")

    def _plan(self, view: ClusterView, now: float, *, is_ordered: bool) -> Plan:
        """Raises ValueError for pins that nothing can satisfy."""
        config, expert_map = self._config, view.expert_map
        problem = PlacementProblem(
            expert_map=expert_map,
            load=self._picture.load(now),
            cost=self._picture.cost(),
            max_moves=config.max_moves,
            max_copies_per_layer=config.max_copies_per_layer,
            pins=view.orders.pins,
        )
        candidate = placement_policy(config.policy).plan(problem)
        steps = migration(expert_map, candidate)
        drifting = self._picture.drift.is_drifting
        settings = DecisionSettings(
            horizon_s=config.horizon_s,
            min_gain=config.min_gain,
            interval_s=config.drift_interval_s if drifting else config.interval_s,
            move_s=config.move_s,
        )
        since_last_s = None if self._finished_at is None else now - self._finished_at
        pace = Pace(self._picture.steps_per_s(now), since_last_s, is_ordered)
        # Stages that only drop copies count as a change too.
        num_moves = max(steps.num_moves, min(1, len(steps.stages)))
        return Plan(decide(problem, candidate, num_moves, settings, pace), steps)

    def _begin(self, plan: Plan, trigger: str, now: float) -> None:
        decision = plan.decision
        logger.info("a rebalance begins (%s): %s", trigger, decision.reason)
        self._rebalancer.begin(
            Rebalance(
                stages=tuple(stage.expert_map for stage in plan.migration.stages),
                trigger=trigger,
                num_moves=plan.migration.num_moves,
                gain=decision.gain,
                balancedness_before=float(balancedness(self._picture.rank_pairs(now)).mean()),
                balancedness_planned=decision.balancedness_after,
            ),
            now,
        )

    def _note_measured(self, now: float) -> None:
        """Two half-lives after a rebalance three quarters of the window are younger than it."""
        settled_s = 2.0 * self._config.half_life_s
        if self._finished_at is not None and not self._rebalancer.is_busy and now - self._finished_at >= settled_s:
            self._rebalancer.note_measured(float(balancedness(self._picture.rank_pairs(now)).mean()))

    def _moe_layer_idx(self, layer_id: int) -> int:
        if layer_id not in self.layer_ids:
            raise InvalidOrder(f"Layer {layer_id} has no experts; {self.layer_ids[0]} to {self.layer_ids[-1]} have.")
        return self.layer_ids.index(layer_id)


def _progress(reports: Reports) -> tuple[int, int]:
    experts = [report for report in reports.values() if isinstance(report, ExpertReport)]
    return sum(report.num_loaded for report in experts), sum(report.num_to_load for report in experts)


def _proposal(plan: Plan, *, is_dry_run: bool) -> Proposal:
    decision = plan.decision
    return Proposal(
        is_accepted=decision.should_rebalance,
        is_dry_run=is_dry_run,
        reason=decision.reason,
        num_moves=plan.migration.num_moves,
        num_stages=len(plan.migration.stages),
        seconds_per_step=decision.seconds_per_step,
        gain=decision.gain,
        cost_s=decision.cost_s,
        balancedness_before=decision.balancedness_before,
        balancedness_after=decision.balancedness_after,
    )
