"""Every EP rank in this process: the meaning of the dispatcher contract, and the oracle for its other form."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from routing.combine import sum_partials, sum_per_expert
from routing.dispatcher import DispatchHandle, ExpertCompute, ExpertRequest
from routing.experts import ExpertMap
from routing.plan import layer_routing, planner


class LocalDispatcher:
    """Plans as the remote dispatcher does, then calls each rank's `compute` directly."""

    def __init__(
        self, expert_map: ExpertMap, ranks: Sequence[ExpertCompute], *, deterministic: bool, device: torch.device | str
    ) -> None:
        if len(ranks) != expert_map.ep_size:
            raise ValueError(f"{len(ranks)} expert ranks given, the map has ep_size {expert_map.ep_size}")
        self._map = expert_map
        self._ranks = ranks
        self._deterministic = deterministic
        self._plan = planner(device)
        self._routing = [layer_routing(expert_map, idx, device) for idx in range(expert_map.num_moe_layers)]
        self.waited_s = 0.0

    def dispatch(self, request: ExpertRequest) -> DispatchHandle:
        plan = self._plan(request.topk_ids, request.topk_weights, self._routing[request.moe_layer_idx])
        return DispatchHandle(request, plan, exchange=None)

    def combine(self, handle: DispatchHandle) -> Tensor:
        began_at = time.perf_counter()
        outputs = [self._compute(handle, ep_rank) for ep_rank in handle.plan.ranks]
        combine = sum_per_expert if self._deterministic else sum_partials
        combined = combine(outputs, handle.plan, handle.request)
        self.waited_s += time.perf_counter() - began_at
        return combined

    def abandon(self, handle: DispatchHandle) -> None:
        """Nothing is in flight before `combine`."""

    def _compute(self, handle: DispatchHandle, ep_rank: int) -> Tensor:
        plan, request = handle.plan, handle.request
        rows = slice(sum(plan.row_splits[:ep_rank]), sum(plan.row_splits[: ep_rank + 1]))
        pairs = slice(sum(plan.pair_splits[:ep_rank]), sum(plan.pair_splits[: ep_rank + 1]))
        return self._ranks[ep_rank].compute(
            map_epoch=self._map.map_epoch,
            moe_layer_idx=request.moe_layer_idx,
            hidden=request.hidden[plan.row_token[rows]],
            pair_row=plan.pair_row[pairs],
            pair_slot=plan.pair_slot[pairs],
            pair_weight=plan.pair_weight[pairs],
            per_expert=self._deterministic,
        )
