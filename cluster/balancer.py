"""Balancer: decides when experts move, and has the rebalancer move them. Owns the load picture and the decisions.

Reports and views go in; the next view, proposals and the operator's status come out. Time is given with each call. The
operator's orders live in the view, so that they outlive this process.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from cluster.balancing import BalancingConfig
from cluster.errors import InvalidOrder
from cluster.evacuation import Evacuation
from cluster.experts_status import BalancerStatus, ExpertStatus, ExpertTierStatus, Outcome, Proposal
from cluster.load_picture import LoadPicture
from cluster.membership import AttentionReport, ExpertReport, MemberReport
from cluster.notices import Notice, Tell, tell_nobody
from cluster.rebalancer import Rebalance, Rebalancer, Reports, phase_of
from cluster.surroundings import Surroundings
from cluster.tier_status import expert_status, tier_status
from cluster.view import ClusterView, with_orders
from routing.experts import ExpertMap
from routing.load.sample import LoadSample
from routing.load.sums import FloatArray
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
        tell: Tell = tell_nobody,
    ) -> None:
        """layer_ids: the model's number of each MoE layer; None counts MoE layers from 0. tell: who hears what was done
        and why; the coordinator tells them too."""
        self._config = config
        self.layer_ids = layer_ids or tuple(range(expert_map.num_moe_layers))
        self._picture = LoadPicture(config, expert_map)
        self._rebalancer = Rebalancer(config.stage_timeout_s, wall_clock)
        self._evacuation = Evacuation()
        self.tell = tell
        self._was_drifting = False
        self._considered_at: float | None = None
        self._finished_at: float | None = None
        self._last_decision = "nothing has been decided yet"
        self.decisions = Counter[str]()  # maps considered since birth, by what came of it
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
        view = self._rebalancer.advance(self._evacuation.look(view, reports), reports, now)
        if was_busy and not self._rebalancer.is_busy:
            self._finished(now)
        self._note_measured(now)
        self._note_drift()
        if self._may_evacuate(view, now):
            view = self._evacuate(view, reports, now)
        elif self._is_due(view, now):
            self._considered_at = now
            plan = self._plan(view, now, is_ordered=False)
            self._last_decision = plan.decision.reason
            self.decisions["rebalance" if plan.decision.should_rebalance else "keep"] += 1
            if plan.decision.should_rebalance:
                self._begin(plan, "drift" if self._picture.drift.is_drifting else "load", now)
                view = self._rebalancer.advance(view, reports, now)
        return view

    def note_surroundings(self, surroundings: Surroundings) -> None:
        """What is known now of the places where members run. The next `advance` acts on it."""
        self._evacuation.note(surroundings)

    def propose(self, view: ClusterView, now: float, *, is_dry_run: bool, trigger: str = "manual") -> Proposal:
        """A rebalance by the operator's hand, which begins with the next `advance` unless it is a dry run. Raises
        InvalidOrder when there can be none now."""
        self._check_can_begin(view, now)
        try:
            plan = self._plan(view, now, is_ordered=True)
        except ValueError as error:
            raise InvalidOrder(f"There is no such placement: {error}.") from error
        if not is_dry_run:
            self.decisions["rebalance" if plan.decision.should_rebalance else "keep"] += 1
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

    def load(self, now: float) -> FloatArray:
        """float64 [L, E]: expected pairs of each logical expert in a step."""
        return self._picture.load(now)

    def load_sample(self, now: float) -> LoadSample:
        """What the load window holds."""
        return self._picture.window(now)

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

    def _may_evacuate(self, view: ClusterView, now: float) -> bool:
        """Safety does not wait for an operator (manual), but for one who has said that nothing is to move."""
        is_allowed = self._config.mode != "off" and not view.orders.is_paused
        return is_allowed and self._evacuation.is_due(view, now)

    def _evacuate(self, view: ClusterView, reports: Reports, now: float) -> ClusterView:
        """Away from ranks that are about to go, or back to those that stay after all."""
        if self._rebalancer.is_busy:
            self._rebalancer.end_early()
            self._evacuation.cut()
            return view
        problem = self._problem(view, now)
        try:
            target = self._evacuation.target(problem)
            steps = migration(view.expert_map, target)
        except ValueError as error:
            logger.warning("experts cannot be brought to safety: %s", error)
            self._evacuation.answer()
            return view
        reason = self._evacuation.sentence(target, steps.num_moves)
        self._last_decision = reason
        if not steps.stages:
            self._evacuation.answer()
            return view
        decision = self._decide(problem, target, steps, now, is_ordered=True)
        self._evacuation.begin(view.expert_map)
        self._begin(Plan(replace(decision, reason=reason), steps), self._evacuation.trigger, now)
        return self._rebalancer.advance(view, reports, now)

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
        problem = self._problem(view, now)
        candidate = self._evacuation.avoided(placement_policy(self._config.policy).plan(problem), problem)
        steps = migration(view.expert_map, candidate)
        return Plan(self._decide(problem, candidate, steps, now, is_ordered=is_ordered), steps)

    def _problem(self, view: ClusterView, now: float) -> PlacementProblem:
        return PlacementProblem(
            expert_map=view.expert_map,
            load=self._picture.load(now),
            cost=self._picture.cost(),
            max_moves=self._config.max_moves,
            max_copies_per_layer=self._config.max_copies_per_layer,
            pins=view.orders.pins,
            host_of_rank=self._evacuation.host_of_rank(view),
        )

    def _decide(
        self, problem: PlacementProblem, candidate: ExpertMap, steps: Migration, now: float, *, is_ordered: bool
    ) -> Decision:
        config, drifting = self._config, self._picture.drift.is_drifting
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
        return decide(problem, candidate, num_moves, settings, pace)

    def _begin(self, plan: Plan, trigger: str, now: float) -> None:
        decision = plan.decision
        logger.info("a rebalance begins (%s): %s", trigger, decision.reason)
        self.tell(Notice("rebalance", f"a rebalance begins ({trigger}): {decision.reason}"))
        self._rebalancer.begin(
            Rebalance(
                stages=tuple(stage.expert_map for stage in plan.migration.stages),
                trigger=trigger,
                num_moves=plan.migration.num_moves,
                gain=decision.gain,
                balancedness_before=float(balancedness(self._picture.rank_pairs(now)).mean()),
                balancedness_planned=decision.balancedness_after,
                pairs_per_touch=self._picture.cost().pairs_per_touch,
            ),
            now,
        )

    def _finished(self, now: float) -> None:
        self._finished_at = now
        self._picture.rebase(now)
        record = self._rebalancer.history[-1]
        self._evacuation.ended(record.outcome, now)
        if record.outcome is Outcome.DONE:
            text = f"a rebalance ({record.trigger}) is done: {record.num_moves} moves in {record.seconds:.1f} s"
            self.tell(Notice("rebalance", text))
        else:
            text = f"a rebalance ({record.trigger}) was abandoned: {record.reason}"
            self.tell(Notice("rebalance_abandoned", text, is_warning=True))

    def _note_drift(self) -> None:
        drift = self._picture.drift
        if drift.is_drifting and not self._was_drifting:
            self.tell(Notice("drift", f"the router drifts: {'; '.join(drift.reasons)}", is_warning=True))
        self._was_drifting = drift.is_drifting

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
