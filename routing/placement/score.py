"""How good a map is for a load: predicted time of the expert tier, balancedness, and what no map can beat. Pure.

Copies of an expert share its pairs evenly. A copy that gets an expected `pairs` in a step is touched with probability
1 - exp(-pairs): arrivals of independent tokens are nearly Poisson.

Legend: L MoE layers, E logical experts, R EP ranks, S slots of a rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from routing.experts import EMPTY_SLOT, ExpertMap
from routing.placement.contract import FloatArray, TierCost


def copy_seconds(pairs: Any, cost: TierCost) -> Any:
    """Expected seconds of copies that get these pairs in a step; a number or an array, as `pairs`."""
    return cost.per_expert_s * -np.expm1(-pairs) + cost.per_pair_s * pairs


def rank_pairs(expert_map: ExpertMap, load: FloatArray) -> FloatArray:
    """float64 [L, R]: pairs of each rank in a step."""
    return _per_rank(expert_map, _slot_pairs(expert_map, load))


def rank_seconds(expert_map: ExpertMap, load: FloatArray, cost: TierCost) -> FloatArray:
    """float64 [L, R]: expected seconds of each rank in a step."""
    return _per_rank(expert_map, copy_seconds(_slot_pairs(expert_map, load), cost))


def rank_touched(expert_map: ExpertMap, load: FloatArray) -> FloatArray:
    """float64 [L, R]: distinct experts that a step touches on each rank."""
    return rank_seconds(expert_map, load, TierCost(1.0, 0.0))


def layer_seconds(expert_map: ExpertMap, load: FloatArray, cost: TierCost) -> FloatArray:
    """float64 [L]: a layer takes as long as its slowest rank."""
    seconds: FloatArray = rank_seconds(expert_map, load, cost).max(axis=1)
    return seconds


def balancedness(pairs: FloatArray) -> FloatArray:
    """float64 [L]: mean over ranks / max over ranks; 1 for a layer without load. pairs: [L, R]."""
    busiest = pairs.max(axis=1)
    return np.where(busiest > 0.0, pairs.mean(axis=1) / np.where(busiest > 0.0, busiest, 1.0), 1.0)


def least_seconds(
    load: FloatArray, cost: TierCost, ep_size: int, max_copies: int, slots_per_rank: int | None = None
) -> FloatArray:
    """float64 [L]: no map with so many redundant copies in a layer makes it faster.

    Ranks can at best share the work that there is without copies; and some rank has a copy of the costliest expert,
    which can at best be split over all copies, and besides it what fits on no other rank's slots. slots_per_rank: None
    for as many as one likes.
    """
    spread = min(ep_size, 1 + max_copies)
    mean = copy_seconds(load, cost).sum(axis=1) / ep_size
    ordered = np.sort(copy_seconds(load, cost), axis=1)  # copies cost in the order of loads
    num_own = 0 if slots_per_rank is None else max(load.shape[1] - (ep_size - 1) * slots_per_rank, 0)
    alone = ordered[:, -1] + ordered[:, : max(num_own - 1, 0)].sum(axis=1)
    split = copy_seconds(load.max(axis=1) / spread, cost) + ordered[:, :-1][:, :num_own].sum(axis=1)
    bound: FloatArray = np.maximum(mean, np.minimum(alone, split) if spread > 1 else alone)
    return bound


def most_balanced(load: FloatArray, ep_size: int, max_copies: int, slots_per_rank: int | None = None) -> FloatArray:
    """float64 [L]: no map with so many redundant copies in a layer is better balanced."""
    mean = load.sum(axis=1) / ep_size
    busiest = least_seconds(load, TierCost(0.0, 1.0), ep_size, max_copies, slots_per_rank)
    return np.where(busiest > 0.0, mean / np.where(busiest > 0.0, busiest, 1.0), 1.0)


def _slot_pairs(expert_map: ExpertMap, load: FloatArray) -> FloatArray:
    """float64 [L, R * S]: pairs of each physical expert in a step."""
    table = expert_map.physical_to_logical
    share = load / expert_map.num_copies
    pairs: FloatArray = np.where(table == EMPTY_SLOT, 0.0, np.take_along_axis(share, np.maximum(table, 0), axis=1))
    return pairs


def _per_rank(expert_map: ExpertMap, per_slot: FloatArray) -> FloatArray:
    summed: FloatArray = per_slot.reshape(len(per_slot), expert_map.ep_size, -1).sum(axis=2)
    return summed
