"""ExpertShard: the weights of one EP rank and what they compute. Holds no request state, so any call may be repeated.

Legend: R rows, P pairs, H hidden size, S expert slots (see routing/plan.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from actors.kernels.contract import ExpertWeights, Kernels
from actors.model.config import ModelConfig
from routing.experts import EMPTY_SLOT, ExpertMap


class ExpertShard:
    """Satisfies `routing.dispatcher.ExpertCompute`."""

    def __init__(
        self,
        config: ModelConfig,
        expert_map: ExpertMap,
        ep_rank: int,
        weights: Sequence[ExpertWeights],
        kernels: Kernels,
    ) -> None:
        """weights: one entry per MoE layer, stacked by slot."""
        self._limits = [spec.routed_limit for spec in config.moe_layers]
        self._map_epoch = expert_map.map_epoch
        self._is_held = torch.from_numpy(expert_map.local_experts(ep_rank) != EMPTY_SLOT)
        self._weights = weights
        self._kernels = kernels

    def check(self, *, map_epoch: int, moe_layer_idx: int, num_rows: int, pair_row: Tensor, pair_slot: Tensor) -> None:
        """Raises ValueError for an epoch, layer, row or slot that this rank cannot serve. For rows from elsewhere."""
        if map_epoch != self._map_epoch:
            raise ValueError(f"map epoch {map_epoch} is not served, only {self._map_epoch}")
        if not 0 <= moe_layer_idx < len(self._limits):
            raise ValueError(f"MoE layer {moe_layer_idx} is outside 0..{len(self._limits) - 1}")
        if not len(pair_row):
            return
        rows, slots = pair_row.aminmax(), pair_slot.aminmax()
        if int(rows.min) < 0 or int(rows.max) >= num_rows:
            raise ValueError(f"a pair points outside the {num_rows} rows of its frame")
        is_held = self._is_held[moe_layer_idx]
        if int(slots.min) < 0 or int(slots.max) >= len(is_held) or not bool(is_held[pair_slot.cpu()].all()):
            raise ValueError(f"a pair points at a slot that holds no expert in MoE layer {moe_layer_idx}")

    def compute(
        self,
        *,
        map_epoch: int,
        moe_layer_idx: int,
        hidden: Tensor,
        pair_row: Tensor,
        pair_slot: Tensor,
        pair_weight: Tensor,
        per_expert: bool,
    ) -> Tensor:
        """[R, H] weighted partial sums, or [P, H] unweighted vectors if per_expert. The rows have passed `check`."""
        weights, limit = self._weights[moe_layer_idx], self._limits[moe_layer_idx]
        vectors = self._kernels.expert_mlp(hidden, pair_row, pair_slot, weights, limit)
        return vectors if per_expert else _weighted_sum(vectors, pair_row, pair_weight, hidden)


def _weighted_sum(vectors: Tensor, pair_row: Tensor, pair_weight: Tensor, hidden: Tensor) -> Tensor:
    """Sum in fp32, rounded once to the dtype that travels."""
    total = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    total.index_add_(0, pair_row, vectors.to(torch.float32) * pair_weight.unsqueeze(1))
    return total.to(hidden.dtype)
