"""What an operator is shown of the expert tier: load, copies, confidence, drift, rebalances. Frozen plain values.

The same values go to the command line, the admin route and the console. `to_dict` makes JSON of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

BalancerMode = Literal["auto", "manual", "off"]


class Phase(StrEnum):
    """What the balancer does now."""

    IDLE = "idle"
    PREPARING = "preparing"  # ranks load what the next map adds; the current one is served
    ADOPTING = "adopting"  # both maps are served until every attention actor plans with the new one


class Outcome(StrEnum):
    """How a rebalance ended."""

    DONE = "done"
    ABANDONED = "abandoned"  # serving went on with the map it had


@dataclass(frozen=True)
class LayerStatus:
    """One MoE layer over the load window.

    layer_id: of the model, dense layers counted. rank_pairs: (row, expert) pairs of each rank in a step, as the ranks
    counted them; rank_experts: distinct experts each rank touches in a step. balancedness: mean over ranks / max over
    ranks of pairs, 1 is perfect. mass, entropy, margin: means over tokens (specification, section 7: routing
    confidence); norm_low, norm_high: min and max over median of the experts' activation norms, None until sampled.
    """

    layer_id: int
    rank_pairs: tuple[float, ...]
    rank_experts: tuple[float, ...]
    balancedness: float
    num_copies: int
    mass: float
    entropy: float
    margin: float
    norm_low: float | None
    norm_high: float | None
    is_drifting: bool


@dataclass(frozen=True)
class ExpertStatus:
    """One logical expert. load: its pairs over the mean of its layer. ep_ranks: where its copies are."""

    layer_id: int
    logical_id: int
    load: float
    ep_ranks: tuple[int, ...]
    is_pinned: bool


@dataclass(frozen=True)
class RebalanceRecord:
    """One rebalance. started_at: seconds since the epoch. trigger: load, drift, manual, pin, resumed,
    doomed (ranks were about to go) or returned (they stay after all).

    gain: predicted share of the expert tier's time saved. balancedness_before: measured; balancedness_planned: as
    predicted for the new map; balancedness_after: measured once the load window holds nothing older, None before. What
    was planned before the coordinator restarted is not known (resumed), and None.
    """

    started_at: float
    trigger: str
    num_moves: int
    num_stages: int
    seconds: float
    gain: float | None
    balancedness_before: float | None
    balancedness_planned: float | None
    balancedness_after: float | None
    outcome: Outcome
    reason: str


@dataclass(frozen=True)
class BalancerStatus:
    """The balancer now. progress: slots loaded and slots to load of the stage that is prepared, over all ranks.

    is_stalled: this phase takes longer than the watchdog allows. last_decision: its sentence, with the numbers.
    """

    mode: BalancerMode
    is_paused: bool
    phase: Phase
    phase_seconds: float
    stage: int
    num_stages: int
    progress: tuple[int, int]
    is_stalled: bool
    last_decision: str
    history: tuple[RebalanceRecord, ...]


@dataclass(frozen=True)
class ExpertTierStatus:
    """Everything an operator sees of the expert tier at one moment.

    window_steps, window_tokens: what the load window holds. step_p50_ms, step_p99_ms: steps of all attention actors in
    the last seconds. per_expert_us, per_pair_us: fitted time of touching one
    more expert, and of one more pair. predicted_us: expert time of a step, summed over layers, as predicted for the
    current map; best_us: its lower bound over all maps with as many slots. hottest: descending. num_free_slots: over
    all layers and ranks.
    """

    map_epoch: int
    ep_size: int
    slots_per_rank: int
    num_free_slots: int
    num_redundant: int
    window_steps: float
    window_tokens: float
    step_p50_ms: float
    step_p99_ms: float
    balancedness: float
    per_expert_us: float
    per_pair_us: float
    predicted_us: float
    best_us: float
    drift: str
    layers: tuple[LayerStatus, ...]
    hottest: tuple[ExpertStatus, ...]
    pinned: tuple[ExpertStatus, ...]
    balancer: BalancerStatus

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ExpertTierStatus:
        """Inverse of `to_dict`, also after JSON. Raises KeyError, TypeError or ValueError on anything else."""
        balancer = dict(fields["balancer"])
        history = tuple(_record(record) for record in balancer.pop("history"))
        phase, progress = Phase(balancer.pop("phase")), tuple(balancer.pop("progress"))
        tables = {
            "layers": tuple(_layer(layer) for layer in fields["layers"]),
            "hottest": tuple(_expert(expert) for expert in fields["hottest"]),
            "pinned": tuple(_expert(expert) for expert in fields["pinned"]),
            "balancer": BalancerStatus(history=history, phase=phase, progress=progress, **balancer),
        }
        return cls(**{**fields, **tables})


@dataclass(frozen=True)
class Proposal:
    """What a rebalance would do or begins to do. seconds_per_step: predicted gain of the expert tier.

    is_accepted: it begins, or in a dry run would begin. reason: the decision's sentence.
    """

    is_accepted: bool
    is_dry_run: bool
    reason: str
    num_moves: int
    num_stages: int
    seconds_per_step: float
    gain: float
    cost_s: float
    balancedness_before: float
    balancedness_after: float


def _layer(fields: Mapping[str, Any]) -> LayerStatus:
    lists = {name: tuple(fields[name]) for name in ("rank_pairs", "rank_experts")}
    return LayerStatus(**{**fields, **lists})


def _expert(fields: Mapping[str, Any]) -> ExpertStatus:
    return ExpertStatus(**{**fields, "ep_ranks": tuple(fields["ep_ranks"])})


def _record(fields: Mapping[str, Any]) -> RebalanceRecord:
    return RebalanceRecord(**{**fields, "outcome": Outcome(fields["outcome"])})
