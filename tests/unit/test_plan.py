"""plan_dispatch: small layouts worked by hand, and what holds for every batch and map."""

from __future__ import annotations

import pytest
import torch

from routing.experts import ExpertMap, expert_map_from_rows, linear_expert_map
from routing.plan import DispatchPlan, layer_routing, plan_dispatch

REDUNDANT = expert_map_from_rows([[0, 1, 2, 3, 4, 5, 3, 0, -1], [5, 4, -1, 3, 2, 1, 0, 5, 4]], 6, 3)
LINEAR = linear_expert_map(2, 6, 3)


def test_rows_and_pairs_by_hand() -> None:
    """Ranks hold {0, 1}, {2, 3}, {4, 5}. Token 0 wants 3 and 0; token 1 wants 2 and 3; token 2 wants 1 and 0."""
    ids = torch.tensor([[3, 0], [2, 3], [1, 0]])
    weights = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    plan = plan_dispatch(ids, weights, layer_routing(LINEAR, 0))
    # rank 0 gets tokens 0 and 2, rank 1 gets tokens 0 and 1, rank 2 nothing.
    assert plan.row_token.tolist() == [0, 2, 0, 1]
    assert plan.row_splits == (2, 2, 0)
    assert plan.ranks == (0, 1)
    # rank 0: row 0 with expert 0, row 1 with experts 1 and 0; rank 1: row 0 with 3, row 1 with 2 and 3.
    assert plan.pair_splits == (3, 3, 0)
    assert plan.pair_row.tolist() == [0, 1, 1, 0, 1, 1]
    assert plan.pair_slot.tolist() == [0, 1, 0, 1, 0, 1]
    assert plan.pair_source.tolist() == [1, 4, 5, 0, 2, 3]
    assert torch.equal(plan.pair_weight, torch.tensor([0.2, 0.5, 0.6, 0.1, 0.3, 0.4]))


def test_copies_take_turns() -> None:
    """Expert 0 has copies on ranks 0 and 1: even tokens go to the first, odd ones to the second."""
    expert_map = expert_map_from_rows([[0, 1, 2, 0]], 3, 2)
    plan = plan_dispatch(torch.zeros(5, 1, dtype=torch.int64), torch.ones(5, 1), layer_routing(expert_map, 0))
    assert plan.row_token.tolist() == [0, 2, 4, 1, 3]
    assert plan.row_splits == (3, 2)
    assert plan.pair_slot.tolist() == [0, 0, 0, 1, 1]


def test_empty_batch() -> None:
    """No tokens: no rows, no pairs, no ranks, and the types of a full plan."""
    plan = plan_dispatch(torch.empty(0, 4, dtype=torch.int64), torch.empty(0, 4), layer_routing(REDUNDANT, 0))
    assert (plan.row_splits, plan.pair_splits, plan.ranks) == ((0, 0, 0), (0, 0, 0), ())
    _check_types(plan)


@pytest.mark.parametrize("expert_map", [LINEAR, REDUNDANT], ids=["linear", "redundant"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("num_tokens", [1, 2, 17, 100])
@pytest.mark.parametrize("top_k", [1, 3, 6])
def test_every_pair_travels_once(expert_map: ExpertMap, layer: int, num_tokens: int, top_k: int) -> None:
    """Each (token, k) becomes one pair, with its weight, on a rank and slot that hold the expert it chose."""
    ids = torch.stack([torch.randperm(6)[:top_k] for _ in range(num_tokens)])
    weights = torch.rand(num_tokens, top_k)
    plan = plan_dispatch(ids, weights, layer_routing(expert_map, layer))
    _check_types(plan)
    assert sorted(plan.pair_source.tolist()) == list(range(num_tokens * top_k))
    assert torch.equal(plan.pair_weight, weights.flatten()[plan.pair_source])
    assert (sum(plan.row_splits), sum(plan.pair_splits)) == (len(plan.row_token), num_tokens * top_k)
    parts = zip(
        plan.row_token.split(plan.row_splits),
        plan.pair_row.split(plan.pair_splits),
        plan.pair_slot.split(plan.pair_splits),
        plan.pair_source.split(plan.pair_splits),
        strict=True,
    )
    for ep_rank, (tokens, pair_row, pair_slot, pair_source) in enumerate(parts):
        held = torch.tensor(expert_map.local_experts(ep_rank)[layer], dtype=torch.int64)
        assert torch.equal(held[pair_slot.long()], ids.flatten()[pair_source])
        assert torch.equal(tokens[pair_row.long()], pair_source // top_k)
        assert (tokens.diff() > 0).all(), "rows ascend, so no token travels twice to one rank"
        assert (pair_source.diff() > 0).all(), "pairs are ordered by token, then k"
        assert set(pair_row.tolist()) == set(range(len(tokens))), "no row without a pair"


def test_copies_share_the_load() -> None:
    """Over a batch the copies of one expert get numbers of tokens that differ by at most one."""
    expert_map = expert_map_from_rows([[0, 1, 0, 2, 0, 1]], 3, 3)
    ids = torch.zeros(100, 1, dtype=torch.int64)
    plan = plan_dispatch(ids, torch.ones(100, 1), layer_routing(expert_map, 0))
    assert max(plan.row_splits) - min(plan.row_splits) <= 1


def test_weights_do_not_choose() -> None:
    """Two batches that differ in weights only are planned alike."""
    ids = torch.stack([torch.randperm(6)[:3] for _ in range(20)])
    plans = [plan_dispatch(ids, torch.rand(20, 3), layer_routing(REDUNDANT, 1)) for _ in range(2)]
    assert torch.equal(plans[0].row_token, plans[1].row_token)
    assert torch.equal(plans[0].pair_slot, plans[1].pair_slot)


def _check_types(plan: DispatchPlan) -> None:
    assert (plan.row_token.dtype, plan.pair_source.dtype) == (torch.int64, torch.int64)
    assert (plan.pair_row.dtype, plan.pair_slot.dtype) == (torch.int32, torch.int32)
    assert plan.pair_weight.dtype == torch.float32
    tensors = (plan.row_token, plan.pair_row, plan.pair_slot, plan.pair_weight, plan.pair_source)
    assert all(tensor.is_contiguous() for tensor in tensors)
