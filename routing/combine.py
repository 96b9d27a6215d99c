"""Rank outputs back to tokens: the sum at the end of a dispatch. Pure.

Legend: T tokens, K experts per token, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from routing.dispatcher import ExpertRequest
from routing.plan import DispatchPlan


def sum_partials(outputs: Sequence[Tensor], plan: DispatchPlan, request: ExpertRequest) -> Tensor:
    """Add the weighted partial sums of every rank in fp32. outputs: one [rows, H] per rank of `plan.ranks`.

    Returns [T, H] in the dtype of the request, rounded once.
    """
    total = torch.zeros_like(request.hidden, dtype=torch.float32)
    for rank_outputs, tokens in zip(outputs, _rank_slices(plan.row_token, plan.row_splits), strict=True):
        total.index_add_(0, tokens, rank_outputs.to(torch.float32))
    return total.to(request.hidden.dtype)


def sum_per_expert(outputs: Sequence[Tensor], plan: DispatchPlan, request: ExpertRequest) -> Tensor:
    """Weight and add per-expert vectors in ascending logical id, in fp32. outputs: one [pairs, H] per rank.

    The order of the sum depends on the ids alone, so the same token gives the same bits on every placement.
    """
    num_tokens, top_k = request.topk_ids.shape
    vectors = torch.empty(
        (num_tokens * top_k, request.hidden.shape[1]), dtype=torch.float32, device=request.hidden.device
    )
    for rank_outputs, sources in zip(outputs, _rank_slices(plan.pair_source, plan.pair_splits), strict=True):
        vectors[sources] = rank_outputs.to(torch.float32)
    by_id = torch.argsort(request.topk_ids, dim=1)
    weights = request.topk_weights.gather(1, by_id).to(torch.float32)
    first_source = torch.arange(num_tokens, device=by_id.device) * top_k
    total = torch.zeros_like(vectors[:num_tokens])
    for k in range(top_k):
        total += vectors[first_source + by_id[:, k]] * weights[:, k : k + 1]
    return total.to(request.hidden.dtype)


def _rank_slices(values: Tensor, splits: Sequence[int]) -> list[Tensor]:
    return [part for part in values.split(list(splits)) if len(part)]
