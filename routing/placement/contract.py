"""What a placement policy is given and what it returns. Readable alone.

Legend: L MoE layers, E logical experts, R EP ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from routing.experts import ExpertMap

FloatArray = NDArray[np.float64]


MAX_PAIRS_PER_TOUCH = 256  # beyond it a copy is never worth a second touch


@dataclass(frozen=True)
class TierCost:
    """Seconds of an expert rank: for each distinct expert that a step touches, and for each (row, expert) pair."""

    per_expert_s: float
    per_pair_s: float

    def __post_init__(self) -> None:
        costs = np.array([self.per_expert_s, self.per_pair_s])
        if not np.isfinite(costs).all() or costs.min() < 0.0 or costs.max() <= 0.0:
            raise ValueError(f"costs must be finite, not negative and not both 0, got {self}")

    @property
    def pairs_per_touch(self) -> int:
        """Pairs that cost as much as touching one more expert, 1 to MAX_PAIRS_PER_TOUCH: what a dispatch weighs when it
        chooses between copies."""
        if self.per_expert_s >= MAX_PAIRS_PER_TOUCH * self.per_pair_s:
            return MAX_PAIRS_PER_TOUCH
        return max(1, round(self.per_expert_s / self.per_pair_s))


@dataclass(frozen=True)
class Pin:
    """An expert's copies are exactly on these ranks: neither moved, nor dropped, nor joined by others."""

    moe_layer_idx: int
    logical_id: int
    ep_ranks: tuple[int, ...]


@dataclass(frozen=True)
class PlacementProblem:
    """What a policy plans from.

    expert_map: where experts are now. load: float64 [L, E], expected pairs of each logical expert in a step.
    max_moves: experts to be loaded at most, None for no
    limit; pins come first and are put right whatever it says. max_copies_per_layer: redundant copies at most, None for
    as many as there are slots. host_of_rank: by EP rank; None puts every rank on a host of its own.
    Raises ValueError at birth for a load or pins that do not fit the map.
    """

    expert_map: ExpertMap
    load: FloatArray
    cost: TierCost
    max_moves: int | None = None
    max_copies_per_layer: int | None = None
    pins: tuple[Pin, ...] = ()
    host_of_rank: tuple[int, ...] | None = field(default=None)

    def __post_init__(self) -> None:
        expected = (self.expert_map.num_moe_layers, self.expert_map.num_logical_experts)
        if self.load.shape != expected:
            raise ValueError(f"the load has shape {self.load.shape}, the expert map {expected}")
        if self.load.dtype != np.float64 or not np.isfinite(self.load).all() or (self.load < 0.0).any():
            raise ValueError(f"the load must be float64, finite and not negative, got {self.load.dtype}")
        for name in ("max_moves", "max_copies_per_layer"):
            limit = getattr(self, name)
            if limit is not None and limit < 0:
                raise ValueError(f"{name} must not be negative, got {limit}")
        if self.host_of_rank is not None and len(self.host_of_rank) != self.expert_map.ep_size:
            raise ValueError(f"{len(self.host_of_rank)} hosts for {self.expert_map.ep_size} ranks")
        check_pins(self.pins, self.expert_map)

    def pins_of(self, moe_layer_idx: int) -> Mapping[int, tuple[int, ...]]:
        """Ranks by pinned logical expert of one layer."""
        return {pin.logical_id: pin.ep_ranks for pin in self.pins if pin.moe_layer_idx == moe_layer_idx}


class PlacementPolicy(Protocol):
    """From a load to a map. Deterministic: equal problems give equal maps."""

    def plan(self, problem: PlacementProblem) -> ExpertMap:
        """The map to have. Only which experts a rank holds matters, not their slots. The current map itself if it is
        to stay; otherwise one with the next map epoch."""
        ...


_POLICIES: Mapping[str, str] = {
    "linear": "routing.placement.linear:LinearPolicy",
    "eplb": "routing.placement.eplb:GlobalEplb",
    "eplb_hierarchical": "routing.placement.eplb:HierarchicalEplb",
    "tier_time": "routing.placement.tier_time:TierTimePolicy",
}


def placement_policy(name: str) -> PlacementPolicy:
    """A policy by name. Raises ValueError that lists the known ones."""
    if name not in _POLICIES:
        raise ValueError(f"no placement policy is called {name!r}; there are {', '.join(_POLICIES)}")
    module, _, attribute = _POLICIES[name].partition(":")
    policy: PlacementPolicy = getattr(import_module(module), attribute)()
    return policy


def check_pins(pins: tuple[Pin, ...], expert_map: ExpertMap) -> None:
    """Raises ValueError for the first of the pins that this map's model and ranks cannot have."""
    seen: set[tuple[int, int]] = set()
    on_rank: dict[tuple[int, int], int] = {}
    for pin in pins:
        _check_pin(pin, expert_map)
        if (key := (pin.moe_layer_idx, pin.logical_id)) in seen:
            raise ValueError(f"expert {pin.logical_id} of MoE layer {pin.moe_layer_idx} is pinned twice")
        seen.add(key)
        for ep_rank in pin.ep_ranks:
            place = pin.moe_layer_idx, ep_rank
            on_rank[place] = on_rank.get(place, 0) + 1
            if on_rank[place] > expert_map.slots_per_rank:
                raise ValueError(
                    f"more experts are pinned to rank {ep_rank} than its {expert_map.slots_per_rank} slots"
                )


def _check_pin(pin: Pin, expert_map: ExpertMap) -> None:
    if not 0 <= pin.moe_layer_idx < expert_map.num_moe_layers:
        raise ValueError(f"MoE layer {pin.moe_layer_idx} is outside 0..{expert_map.num_moe_layers - 1}")
    if not 0 <= pin.logical_id < expert_map.num_logical_experts:
        raise ValueError(f"expert {pin.logical_id} is outside 0..{expert_map.num_logical_experts - 1}")
    outside = [ep_rank for ep_rank in pin.ep_ranks if not 0 <= ep_rank < expert_map.ep_size]
    if outside or not pin.ep_ranks or len(set(pin.ep_ranks)) != len(pin.ep_ranks):
        raise ValueError(f"ranks {list(pin.ep_ranks)} must be different ones of 0..{expert_map.ep_size - 1}")
