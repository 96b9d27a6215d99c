"""A placement as sets: which experts each rank holds, whatever the slots. Pure.

Legend: R EP ranks, S slots of a rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from routing.experts import EMPTY_SLOT, ExpertMap, Int32Array

Holders = list[set[int]]  # by EP rank, of one layer


def holders_of(expert_map: ExpertMap, moe_layer_idx: int) -> Holders:
    """Which experts of a layer each rank holds."""
    slots = expert_map.physical_to_logical[moe_layer_idx].reshape(expert_map.ep_size, -1)
    return [set(row[row != EMPTY_SLOT].tolist()) for row in slots]


def map_of(layers: Sequence[Holders], like: ExpertMap) -> ExpertMap:
    """A map of these sets in which every expert that stays on its rank stays in its slot; `like` itself if all do."""
    tables = [seated(holders, like, idx) for idx, holders in enumerate(layers)]
    table = np.stack(tables)
    if np.array_equal(table, like.physical_to_logical):
        return like
    return ExpertMap(like.map_epoch + 1, like.ep_size, like.num_logical_experts, table)


def seated(holders: Holders, like: ExpertMap, moe_layer_idx: int) -> Int32Array:
    """int32 [R * S]: the experts of each rank in slots, newcomers in ascending order in those that are left."""
    table = np.full((like.ep_size, like.slots_per_rank), EMPTY_SLOT, dtype=np.int32)
    before = like.physical_to_logical[moe_layer_idx].reshape(like.ep_size, -1)
    for row, old, wanted in zip(table, before, holders, strict=True):
        stays = np.isin(old, list(wanted)) & (old != EMPTY_SLOT)
        row[stays] = old[stays]
        newcomers = sorted(wanted - set(old[stays].tolist()))
        row[np.flatnonzero(~stays)[: len(newcomers)]] = newcomers
    return table.reshape(-1)
