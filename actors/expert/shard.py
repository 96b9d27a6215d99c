"""ExpertShard: the weights of one EP rank and what they compute. Holds no request state, so any call may be repeated.

Legend: R rows, P pairs, H hidden size, S expert slots (see routing/plan.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from actors.expert.refusal import Refusal
from actors.kernels.contract import ExpertWeights, Kernels
from actors.model.config import ModelConfig
from routing.errors import STALE_MAP
from routing.experts import EMPTY_SLOT, ExpertMap
from routing.load.tally import CallTally


class ExpertShard:
    """Satisfies `routing.dispatcher.ExpertCompute`. `serve` may be called by any thread, the rest by one."""

    def __init__(
        self,
        config: ModelConfig,
        expert_map: ExpertMap,
        ep_rank: int,
        weights: Sequence[ExpertWeights],
        kernels: Kernels,
        tally: CallTally | None = None,
    ) -> None:
        """weights: one entry per MoE layer, stacked by slot. tally: None not to count what is computed."""
        self._limits = [spec.routed_limit for spec in config.moe_layers]
        self._ep_rank = ep_rank
        self._weights = weights
        self._kernels = kernels
        self.tally = tally
        self.refusals: Counter[Refusal] = Counter()  # frames, by why they were not computed
        self._is_held_by_epoch: Mapping[int, Tensor] = {}
        self.serve([expert_map])

    @property
    def weights(self) -> Sequence[ExpertWeights]:
        """One entry per MoE layer, stacked by slot; filled in place where no served map names a slot."""
        return self._weights

    @property
    def served_epochs(self) -> tuple[int, ...]:
        """Map epochs whose rows are taken, ascending."""
        return tuple(sorted(self._is_held_by_epoch))

    def serve(self, maps: Sequence[ExpertMap]) -> None:
        """Take rows of these maps, whose slots are filled, and of no other, from the next frame on."""
        self._is_held_by_epoch = {
            expert_map.map_epoch: torch.from_numpy(expert_map.local_experts(self._ep_rank) != EMPTY_SLOT)
            for expert_map in maps
        }

    def check(self, *, map_epoch: int, moe_layer_idx: int, num_rows: int, pair_row: Tensor, pair_slot: Tensor) -> None:
        """Raises ValueError for an epoch, layer, row or slot that this rank cannot serve. For rows from elsewhere."""
        is_held_of = self._is_held_by_epoch.get(map_epoch)
        if is_held_of is None:
            raise ValueError(f"{STALE_MAP}epoch {map_epoch}, only {', '.join(map(str, self.served_epochs))}")
        if not 0 <= moe_layer_idx < len(self._limits):
            raise ValueError(f"MoE layer {moe_layer_idx} is outside 0..{len(self._limits) - 1}")
        if not len(pair_row):
            return
        rows, slots = pair_row.aminmax(), pair_slot.aminmax()
        if int(rows.min) < 0 or int(rows.max) >= num_rows:
            raise ValueError(f"a pair points outside the {num_rows} rows of its frame")
        is_held = is_held_of[moe_layer_idx]
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
        tally = None if self.tally is None else self.tally.layers[moe_layer_idx]
        vectors = self._kernels.expert_mlp(hidden, pair_row, pair_slot, weights, limit, tally)
        return vectors if per_expert else _weighted_sum(vectors, pair_row, pair_weight, hidden)


def _weighted_sum(vectors: Tensor, pair_row: Tensor, pair_weight: Tensor, hidden: Tensor) -> Tensor:
    """Sum in fp32, rounded once to the dtype that travels."""
    total = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    total.index_add_(0, pair_row, vectors.to(torch.float32) * pair_weight.unsqueeze(1))
    return total.to(hidden.dtype)
