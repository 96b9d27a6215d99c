"""A placement as who holds what, whatever the slots: sets of one layer, or one table of all. Pure.

Legend: L MoE layers, R EP ranks, S slots of a rank, E logical experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from routing.experts import EMPTY_SLOT, ExpertMap, Int32Array

Holders = list[set[int]]  # by EP rank, of one layer
BoolArray = NDArray[np.bool_]


def holders_of(expert_map: ExpertMap, moe_layer_idx: int) -> Holders:
    """Which experts of a layer each rank holds."""
    return [set(row[row != EMPTY_SLOT].tolist()) for row in slots_of(expert_map)[moe_layer_idx]]


def slots_of(expert_map: ExpertMap) -> Int32Array:
    """int32 [L, R, S]: the logical expert in each slot."""
    return expert_map.physical_to_logical.reshape(expert_map.num_moe_layers, expert_map.ep_size, -1)


def held_of(expert_map: ExpertMap) -> BoolArray:
    """bool [L, R, E]: whether a rank holds an expert."""
    held = np.zeros((expert_map.num_moe_layers, expert_map.ep_size, expert_map.num_logical_experts), dtype=np.bool_)
    slots = slots_of(expert_map)
    layers, ranks, places = np.nonzero(slots != EMPTY_SLOT)
    held[layers, ranks, slots[layers, ranks, places]] = True
    return held


def map_of(layers: Sequence[Holders], like: ExpertMap) -> ExpertMap:
    """`map_of_held` for sets."""
    held = np.zeros((like.num_moe_layers, like.ep_size, like.num_logical_experts), dtype=np.bool_)
    for layer, holders in enumerate(layers):
        for rank, experts in enumerate(holders):
            held[layer, rank, list(experts)] = True
    return map_of_held(held, like)


def map_of_held(held: BoolArray, like: ExpertMap) -> ExpertMap:
    """A map of these holders. Every expert that stays on its rank stays in its slot; `like` itself if all do."""
    before = held_of(like)
    if np.array_equal(held, before):
        return like
    table = slots_of(like).copy()
    layers, ranks, places = np.nonzero(table != EMPTY_SLOT)
    is_gone = ~held[layers, ranks, table[layers, ranks, places]]
    table[layers[is_gone], ranks[is_gone], places[is_gone]] = EMPTY_SLOT
    # Newcomers of a rank, ascending, go into its empty slots, ascending: the n-th into the n-th.
    layers, ranks, experts = np.nonzero(held & ~before)
    rank_of_newcomer = layers * like.ep_size + ranks
    empty = np.argwhere(table.reshape(-1, like.slots_per_rank) == EMPTY_SLOT)
    nth = np.arange(len(experts)) - np.searchsorted(rank_of_newcomer, rank_of_newcomer)
    chosen = np.searchsorted(empty[:, 0], rank_of_newcomer) + nth
    assert (chosen < len(empty)).all(), "no rank holds more than it has slots"
    assert (empty[chosen, 0] == rank_of_newcomer).all(), "no rank holds more than it has slots"
    table[layers, ranks, empty[chosen, 1]] = experts
    return ExpertMap(like.map_epoch + 1, like.ep_size, like.num_logical_experts, table.reshape(len(table), -1))
