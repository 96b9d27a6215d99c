"""The sums at the end of a dispatch: by hand, against the definition, and bit by bit across placements."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from routing.combine import sum_partials, sum_per_expert
from routing.dispatcher import ExpertRequest
from routing.experts import ExpertMap, expert_map_from_rows, linear_expert_map
from routing.plan import DispatchPlan, layer_routing, plan_dispatch

LINEAR = linear_expert_map(1, 8, 4)
SCATTERED = expert_map_from_rows([[7, 0, 5, 3, 2, 6, 1, 4, 0, 7, -1, 2]], 8, 4)
HIDDEN = 5
BF16_ROW = torch.ones(1, 1, dtype=torch.bfloat16)


def test_partials_by_hand() -> None:
    """Token 0 goes to both ranks, token 1 to rank 1 only: their sums are 1 + 20 and 30."""
    request = _request(torch.tensor([[0, 4], [5, 6]]), torch.ones(2, 2), hidden_size=1)
    plan = plan_dispatch(request.topk_ids, request.topk_weights, layer_routing(linear_expert_map(1, 8, 2), 0))
    total = sum_partials([torch.tensor([[1.0]]), torch.tensor([[20.0], [30.0]])], plan, request)
    assert total.tolist() == [[21.0], [30.0]]


def test_partials_are_rounded_once() -> None:
    """256 + 1 + 1 is 258 in bfloat16, though 256 + 1 rounds back to 256 there."""
    request = replace(_request(torch.tensor([[0, 2, 4]]), torch.ones(1, 3), hidden_size=1), hidden=BF16_ROW)
    plan = plan_dispatch(request.topk_ids, request.topk_weights, layer_routing(LINEAR, 0))
    total = sum_partials([BF16_ROW * 256, BF16_ROW, BF16_ROW], plan, request)
    assert (total.tolist(), total.dtype) == ([[258.0]], torch.bfloat16)


def test_per_expert_by_hand() -> None:
    """Expert e answers e + 1; the weights 0.5 and 2 pick 0.5 * 5 + 2 * 1 for token 0."""
    request = _request(torch.tensor([[4, 0]]), torch.tensor([[0.5, 2.0]]), hidden_size=1)
    plan = plan_dispatch(request.topk_ids, request.topk_weights, layer_routing(LINEAR, 0))
    assert sum_per_expert([torch.tensor([[1.0]]), torch.tensor([[5.0]])], plan, request).tolist() == [[4.5]]


@pytest.mark.parametrize("expert_map", [LINEAR, SCATTERED], ids=["linear", "scattered"])
@pytest.mark.parametrize("num_tokens", [1, 9, 64])
def test_both_sums_meet_the_definition(expert_map: ExpertMap, num_tokens: int) -> None:
    """Experts that scale by their id: both sums are hidden x sum of weight x id, to fp32 rounding of ~8 terms of ~8."""
    request = _random_request(num_tokens)
    plan = plan_dispatch(request.topk_ids, request.topk_weights, layer_routing(expert_map, 0))
    wanted = request.hidden * (request.topk_weights * request.topk_ids).sum(1, keepdim=True)
    torch.testing.assert_close(sum_partials(_partials(request, plan), plan, request), wanted, rtol=1e-5, atol=1e-5)
    per_expert = sum_per_expert(_vectors(request, plan), plan, request)
    torch.testing.assert_close(per_expert, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_per_expert_sum_ignores_placement(dtype: torch.dtype) -> None:
    """The same vectors give the same bits from any map, and from any order of the chosen experts."""
    request = _random_request(33, dtype)
    results = []
    for order in (torch.arange(4), torch.tensor([2, 0, 3, 1])):
        ids, weights = request.topk_ids[:, order], request.topk_weights[:, order]
        permuted = ExpertRequest(0, 0, request.hidden, ids, weights)
        for expert_map in (LINEAR, SCATTERED):
            plan = plan_dispatch(ids, weights, layer_routing(expert_map, 0))
            results.append(sum_per_expert(_vectors(permuted, plan), plan, permuted))
    assert results[0].dtype == dtype
    assert all(torch.equal(result, results[0]) for result in results)


def test_empty_batch() -> None:
    """No tokens, no outputs: an empty sum of the right shape and dtype from both."""
    request = _request(torch.empty(0, 4, dtype=torch.int64), torch.empty(0, 4), hidden_size=HIDDEN)
    plan = plan_dispatch(request.topk_ids, request.topk_weights, layer_routing(LINEAR, 0))
    for combine in (sum_partials, sum_per_expert):
        total = combine([], plan, request)
        assert (total.shape, total.dtype) == ((0, HIDDEN), torch.float32)


@pytest.mark.parametrize("combine", [sum_partials, sum_per_expert])
def test_a_missing_rank_is_not_silently_left_out(combine: object) -> None:
    """Fewer outputs than ranks is an error, never a wrong sum."""
    request = _random_request(6)
    plan = plan_dispatch(request.topk_ids, request.topk_weights, layer_routing(LINEAR, 0))
    outputs = _partials(request, plan) if combine is sum_partials else _vectors(request, plan)
    with pytest.raises(ValueError, match="longer"):
        combine(outputs[:-1], plan, request)  # type: ignore[operator]


def _request(ids: Tensor, weights: Tensor, *, hidden_size: int) -> ExpertRequest:
    return ExpertRequest(0, 0, torch.ones(len(ids), hidden_size), ids, weights)


def _random_request(num_tokens: int, dtype: torch.dtype = torch.float32) -> ExpertRequest:
    ids = torch.stack([torch.randperm(8)[:4] for _ in range(num_tokens)])
    hidden = torch.randn(num_tokens, HIDDEN).to(dtype)
    return ExpertRequest(0, 0, hidden, ids, torch.rand(num_tokens, 4))


def _vectors(request: ExpertRequest, plan: DispatchPlan) -> list[Tensor]:
    """What experts that scale by their logical id return per pair, for each rank of the plan."""
    tokens, ids = plan.pair_source // request.topk_ids.shape[1], request.topk_ids.flatten()[plan.pair_source]
    vectors = request.hidden[tokens] * ids.unsqueeze(1)
    return [part for part in vectors.split(plan.pair_splits) if len(part)]


def _partials(request: ExpertRequest, plan: DispatchPlan) -> list[Tensor]:
    """The same, weighted and summed per row as an expert rank does."""
    splits = zip(
        plan.row_splits, plan.pair_row.split(plan.pair_splits), plan.pair_weight.split(plan.pair_splits), strict=True
    )
    owed = [(rows, pair_row, weight) for rows, pair_row, weight in splits if rows]
    return [
        torch.zeros(rows, HIDDEN).index_add_(0, pair_row.long(), vectors * weight.unsqueeze(1))
        for (rows, pair_row, weight), vectors in zip(owed, _vectors(request, plan), strict=True)
    ]
