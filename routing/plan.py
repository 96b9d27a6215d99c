"""Top-k ids to per-rank rows: which token travels to which rank, and which expert slots apply to it there. Pure.

This is the reference; `native_plan.py` has the same in C++ for the CPU, and `planner` picks.

A *row* is one (token, destination rank): the hidden state travels once per rank however many of its experts live
there. A *pair* is one (row, expert slot) with its gate weight.

Legend: T tokens, K experts per token, R rows over all ranks, P = T * K pairs, E logical experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from routing.experts import PAIRS_PER_TOUCH, ExpertMap


@dataclass(frozen=True)
class LayerRouting:
    """One MoE layer of an ExpertMap as tensors on the device of the gate.

    logical_to_physical: int64 [E, max_copies], physical ids ascending (-1 pads). pairs_per_touch: how many pairs cost
    an expert rank as much as reading one expert's weights.
    """

    logical_to_physical: Tensor
    ep_size: int
    slots_per_rank: int
    pairs_per_touch: int

    @cached_property
    def copies(self) -> list[list[int]]:
        """Physical ids of each logical expert, on the host."""
        return [[physical for physical in row if physical >= 0] for row in self.logical_to_physical.tolist()]


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


def layer_routing(
    expert_map: ExpertMap,
    moe_layer_idx: int,
    device: torch.device | str = "cpu",
    *,
    pairs_per_touch: int = PAIRS_PER_TOUCH,
) -> LayerRouting:
    """The tables `plan_dispatch` reads for one MoE layer. Raises ValueError for pairs_per_touch below 1."""
    if pairs_per_touch < 1:
        raise ValueError(f"pairs_per_touch must be at least 1, got {pairs_per_touch}")
    return LayerRouting(
        logical_to_physical=torch.tensor(expert_map.logical_to_physical[moe_layer_idx], dtype=torch.int64).to(device),
        ep_size=expert_map.ep_size,
        slots_per_rank=expert_map.slots_per_rank,
        pairs_per_touch=pairs_per_touch,
    )


def plan_dispatch(topk_ids: Tensor, topk_weights: Tensor, routing: LayerRouting) -> DispatchPlan:
    """Plan one dispatch.

    topk_ids: int64 [T, K] logical ids. topk_weights: float32 [T, K].
    Which copies of an expert are used is said by `copies_in_use`; they share its pairs in runs of consecutive tokens,
    because those often belong to one sequence and travel together. Pairs are ordered by (rank, token, k).
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


def copies_in_use(num_pairs: Sequence[int], routing: LayerRouting) -> list[list[int]]:
    """Physical ids that take each logical expert's pairs in one batch, ascending. num_pairs: of each logical expert.

    Every copy that is used reads the expert's weights once more, so a copy that the batch already uses takes an
    expert's further pairs until they cost as much as reading it again; only then another copy shares them. Which
    copies are used: those on the ranks that are least busy, counted in pairs. Experts with most pairs choose first.
    """
    busy = [0] * routing.ep_size
    used: list[list[int]] = [copies[:1] for copies in routing.copies]
    several = []
    for logical_id, (count, copies) in enumerate(zip(num_pairs, routing.copies, strict=True)):
        if count and len(copies) == 1:
            busy[copies[0] // routing.slots_per_rank] += routing.pairs_per_touch + count
        elif count:
            several.append(logical_id)
    for logical_id in sorted(several, key=lambda each: (-num_pairs[each], each)):
        count, copies = num_pairs[logical_id], routing.copies[logical_id]
        num_used = min(len(copies), max(1, count // routing.pairs_per_touch))
        by_rank = sorted(copies, key=lambda physical: (busy[physical // routing.slots_per_rank], physical))
        used[logical_id] = sorted(by_rank[:num_used])
        for idx, physical in enumerate(used[logical_id]):
            share = _first_turn(idx + 1, count, num_used) - _first_turn(idx, count, num_used)
            busy[physical // routing.slots_per_rank] += routing.pairs_per_touch + share
    return used


def _choose_copies(topk_ids: Tensor, routing: LayerRouting) -> Tensor:
    """int64 [T, K], the physical expert of each pair."""
    if routing.logical_to_physical.shape[1] == 1:
        return routing.logical_to_physical[topk_ids, 0]
    ids = topk_ids.flatten()
    # Host sync: how an expert is shared depends on how often the whole batch chose it.
    counts = torch.bincount(ids, minlength=len(routing.logical_to_physical))
    used = copies_in_use(counts.tolist(), routing)
    width = max(map(len, used))
    table = torch.tensor([row + [-1] * (width - len(row)) for row in used], device=ids.device)
    num_used = torch.tensor([len(row) for row in used], device=ids.device)
    order = torch.argsort(ids, stable=True)
    turn = torch.empty_like(ids)
    turn[order] = torch.arange(len(ids), device=ids.device) - (counts.cumsum(0) - counts)[ids[order]]
    idx = torch.div(turn * num_used[ids], counts[ids], rounding_mode="floor")
    return table[ids, idx].view_as(topk_ids)


def _first_turn(idx: int, count: int, num_used: int) -> int:
    """The first of an expert's `count` pairs, in the order of tokens, that the idx-th of its used copies takes."""
    return -(-idx * count // num_used)


def _splits(rank: Tensor, ep_size: int) -> tuple[int, ...]:
    # Host sync: the sizes of the exchange are needed on the host.
    return tuple(torch.bincount(rank, minlength=ep_size).tolist())


PlanDispatch = Callable[[Tensor, Tensor, LayerRouting], DispatchPlan]


def planner(device: torch.device | str) -> PlanDispatch:
    """The fastest `plan_dispatch` for a device."""
    if torch.device(device).type != "cpu":
        return plan_dispatch
    try:
        from routing.native_plan import plan_dispatch_native
    except ImportError:  # not built
        return plan_dispatch
    return plan_dispatch_native
