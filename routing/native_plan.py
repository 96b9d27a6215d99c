"""`plan_dispatch` in C++, for tensors in host memory: same arguments, same plan to the bit."""

from __future__ import annotations

import torch
from torch import Tensor

from routing import _plan
from routing.plan import DispatchPlan, LayerRouting


def plan_dispatch_native(topk_ids: Tensor, topk_weights: Tensor, routing: LayerRouting) -> DispatchPlan:
    """See `routing.plan.plan_dispatch`. Raises ValueError for ids that are no logical expert."""
    num_tokens, top_k = topk_ids.shape
    num_experts, max_copies = routing.logical_to_physical.shape
    num_pairs = num_tokens * top_k
    ids, weights, table = topk_ids.contiguous(), topk_weights.contiguous(), routing.logical_to_physical
    assert (ids.dtype, weights.dtype, table.dtype) == (torch.int64, torch.float32, torch.int64), "see DispatchPlan"
    # A token has at most one row on each rank that one of its experts is on.
    row_token = torch.empty(num_tokens * min(top_k, routing.ep_size), dtype=torch.int64)
    pair_row, pair_slot = torch.empty(num_pairs, dtype=torch.int32), torch.empty(num_pairs, dtype=torch.int32)
    pair_weight, pair_source = torch.empty(num_pairs, dtype=torch.float32), torch.empty(num_pairs, dtype=torch.int64)
    row_splits, pair_splits = _plan.plan_dispatch(
        (ids.data_ptr(), weights.data_ptr(), table.data_ptr()),
        (num_tokens, top_k, num_experts, max_copies),
        (routing.ep_size, routing.slots_per_rank, routing.pairs_per_touch),
        (
            row_token.data_ptr(),
            pair_row.data_ptr(),
            pair_slot.data_ptr(),
            pair_weight.data_ptr(),
            pair_source.data_ptr(),
        ),
    )
    return DispatchPlan(
        row_token=row_token[: sum(row_splits)],
        row_splits=row_splits,
        pair_row=pair_row,
        pair_slot=pair_slot,
        pair_weight=pair_weight,
        pair_source=pair_source,
        pair_splits=pair_splits,
    )
