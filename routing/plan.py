"""Top-k ids to per-rank rows: which token travels to which rank, and which expert slots apply to it there. Pure.

A *row* is one (token, destination rank): the hidden state travels once per rank however many of its experts live
there. A *pair* is one (row, expert slot) with its gate weight.

Legend: T tokens, K experts per token, R rows over all ranks, P = T * K pairs, E logical experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from routing.experts import ExpertMap


@dataclass(frozen=True)
class LayerRouting:
    """One MoE layer of an ExpertMap as tensors on the device of the gate.

    logical_to_physical: int64 [E, max_copies] (-1 pads). num_copies: int64 [E].
    """

    logical_to_physical: Tensor
    num_copies: Tensor
    ep_size: int
    slots_per_rank: int


@dataclass(frozen=True)
class DispatchPlan:
    """Rank-major rows and pairs of one dispatch.

    row_token: int64 [R], the token each row carries, ascending within a rank. row_splits: rows per rank, sums to R.
    pair_row: int32 [P], row index *within its rank*. pair_slot: int32 [P], expert slot on that rank.
    pair_weight: float32 [P], gate weights. pair_source: int64 [P], token * K + k of the pair in the gate's output.
    pair_splits: pairs per rank, sums to P.
    """

    row_token: Tensor
    row_splits: tuple[int, ...]
    pair_row: Tensor
    pair_slot: Tensor
    pair_weight: Tensor
    pair_source: Tensor
    pair_splits: tuple[int, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Destination ranks that get at least one row."""
        return tuple(rank for rank, rows in enumerate(self.row_splits) if rows)


def layer_routing(expert_map: ExpertMap, moe_layer_idx: int, device: torch.device | str = "cpu") -> LayerRouting:
    """The tables `plan_dispatch` reads for one MoE layer."""
    return LayerRouting(
        logical_to_physical=torch.tensor(expert_map.logical_to_physical[moe_layer_idx], dtype=torch.int64).to(device),
        num_copies=torch.tensor(expert_map.num_copies[moe_layer_idx], dtype=torch.int64).to(device),
        ep_size=expert_map.ep_size,
        slots_per_rank=expert_map.slots_per_rank,
    )


def plan_dispatch(topk_ids: Tensor, topk_weights: Tensor, routing: LayerRouting) -> DispatchPlan:
    """Plan one dispatch.

    topk_ids: int64 [T, K] logical ids. topk_weights: float32 [T, K].
    Copies of one logical expert take turns over the tokens of the batch. Pairs are ordered by (rank, token, k).
    """
    num_tokens, top_k = topk_ids.shape
    physical = _choose_copies(topk_ids, routing).flatten()
    rank = torch.div(physical, routing.slots_per_rank, rounding_mode="floor")
    token = torch.arange(num_tokens, device=topk_ids.device).repeat_interleave(top_k)
    rank_token = rank * max(num_tokens, 1) + token
    order = torch.argsort(rank_token, stable=True)
    rows, pair_row = torch.unique_consecutive(rank_token[order], return_inverse=True)
    row_splits = _splits(torch.div(rows, max(num_tokens, 1), rounding_mode="floor"), routing.ep_size)
    pair_splits = _splits(rank, routing.ep_size)
    first_row = torch.tensor([0, *row_splits[:-1]], device=topk_ids.device).cumsum(0)
    return DispatchPlan(
        row_token=rows % max(num_tokens, 1),
        row_splits=row_splits,
        pair_row=(pair_row - first_row[rank[order]]).to(torch.int32),
        pair_slot=(physical % routing.slots_per_rank)[order].to(torch.int32),
        pair_weight=topk_weights.flatten()[order],
        pair_source=order,
        pair_splits=pair_splits,
    )


def _choose_copies(topk_ids: Tensor, routing: LayerRouting) -> Tensor:
    if routing.logical_to_physical.shape[1] == 1:
        return routing.logical_to_physical[topk_ids, 0]
    turn = torch.arange(topk_ids.shape[0], device=topk_ids.device).unsqueeze(1)
    return routing.logical_to_physical[topk_ids, turn % routing.num_copies[topk_ids]]


def _splits(rank: Tensor, ep_size: int) -> tuple[int, ...]:
    # Host sync: the sizes of the exchange are needed on the host.
    return tuple(torch.bincount(rank, minlength=ep_size).tolist())
