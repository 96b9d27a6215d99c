"""Puts pinned experts where an operator wants them, making room with as little change as possible. Pure.

Legend: L MoE layers, R EP ranks, E logical experts.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from routing.placement.contract import PlacementProblem
from routing.placement.holders import BoolArray


def pinned(held: BoolArray, problem: PlacementProblem) -> BoolArray:
    """Holders in which every pinned expert is exactly on its ranks. held: bool [L, R, E].

    Raises ValueError when there is no room: every other slot holds a pinned or an only copy.
    """
    result = held.copy()
    for layer in sorted({pin.moe_layer_idx for pin in problem.pins}):
        pins = problem.pins_of(layer)
        for expert, ranks in sorted(pins.items()):
            result[layer, :, expert] = False
            result[layer, list(ranks), expert] = True
        for rank in range(result.shape[1]):
            while np.count_nonzero(result[layer, rank]) > problem.expert_map.slots_per_rank:
                _relieve(result[layer], rank, pins, problem.expert_map.slots_per_rank)
    return result


def _relieve(held: BoolArray, rank: int, pins: Collection[int], slots_per_rank: int) -> None:
    """Take one expert off a rank that holds too many: a redundant copy, else an only one that finds room elsewhere."""
    movable = [expert for expert in np.flatnonzero(held[rank]).tolist() if expert not in pins]
    redundant = [expert for expert in movable if np.count_nonzero(held[:, expert]) > 1]
    other = None if redundant or not movable else _roomy_rank(held, pins, slots_per_rank)
    if not redundant and other is None:
        raise ValueError(f"there is no room for a pinned expert on rank {rank}: every slot holds a pinned or only copy")
    held[rank, (redundant or movable)[0]] = False
    if other is not None:
        held[other, movable[0]] = True


def _roomy_rank(held: BoolArray, pins: Collection[int], slots_per_rank: int) -> int | None:
    """The emptiest rank with a free slot, or else one that drops a redundant copy; None if there is no such rank."""
    sizes, copies = np.count_nonzero(held, axis=1), np.count_nonzero(held, axis=0)
    if sizes.min() < slots_per_rank:
        return int(sizes.argmin())
    for rank, expert in np.argwhere(held & (copies > 1)).tolist():
        if expert not in pins and sizes[rank] == slots_per_rank:
            held[rank, expert] = False
            return int(rank)
    return None
