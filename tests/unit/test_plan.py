"""plan_dispatch: small layouts worked by hand, and what holds for every batch and map."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from routing.experts import ExpertMap, expert_map_from_rows, linear_expert_map
from routing.native_plan import plan_dispatch_native
from routing.plan import DispatchPlan, PlanDispatch, copies_in_use, layer_routing, plan_dispatch, planner

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


@pytest.mark.parametrize(
    ("num_tokens", "tokens_of_rank"),
    [
        (1, ([0], [])),  # the busiest choose first, ties go to the lower copy
        (7, ([0, 1, 2, 3, 4, 5, 6], [])),  # less than twice what a second reading costs
        (8, ([0, 1, 2, 3], [4, 5, 6, 7])),
        (9, ([0, 1, 2, 3, 4], [5, 6, 7, 8])),
    ],
)
def test_a_second_copy_must_be_worth_reading(num_tokens: int, tokens_of_rank: tuple[list[int], ...]) -> None:
    """Expert 0 has copies on ranks 0 and 1, and reading it costs as much as four pairs. Runs stay together."""
    routing = layer_routing(expert_map_from_rows([[0, 1, 2, 0]], 3, 2), 0, pairs_per_touch=4)
    plan = plan_dispatch(torch.zeros(num_tokens, 1, dtype=torch.int64), torch.ones(num_tokens, 1), routing)
    assert tuple(part.tolist() for part in plan.row_token.split(plan.row_splits)) == tokens_of_rank


def test_the_less_busy_rank_is_chosen() -> None:
    """Rank 0 holds 0, 1 and 2, rank 1 holds 3, 0 and 1. Reading costs as much as four pairs.

    Expert 2 keeps rank 0 busy with 4 + 3 and 3 keeps rank 1 busy with 4 + 1. Expert 0 has six pairs and chooses first:
    rank 1, which then has 15. Expert 1 has one pair: rank 0.
    """
    routing = layer_routing(expert_map_from_rows([[0, 1, 2, 3, 0, 1]], 4, 2), 0, pairs_per_touch=4)
    assert copies_in_use([6, 1, 3, 1], routing) == [[4], [1], [2], [3]]


def test_bad_settings_are_refused() -> None:
    """Touching an expert costs something."""
    with pytest.raises(ValueError, match="pairs_per_touch must be at least 1, got 0"):
        layer_routing(LINEAR, 0, pairs_per_touch=0)


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


@pytest.mark.parametrize("num_tokens", [47, 48, 100])
def test_copies_share_the_load(num_tokens: int) -> None:
    """In a large batch the copies of one expert get numbers of tokens that differ by at most one."""
    routing = layer_routing(expert_map_from_rows([[0, 1, 0, 2, 0, 1]], 3, 3), 0, pairs_per_touch=16)
    plan = plan_dispatch(torch.zeros(num_tokens, 1, dtype=torch.int64), torch.ones(num_tokens, 1), routing)
    assert sum(splits > 0 for splits in plan.row_splits) == min(3, num_tokens // 16)
    used = [splits for splits in plan.row_splits if splits]
    assert max(used) - min(used) <= 1


def test_fewer_experts_are_touched_than_by_taking_turns() -> None:
    """A batch that chooses every expert twice touches no second copy of any."""
    routing = layer_routing(REDUNDANT, 0)
    plan = plan_dispatch(torch.arange(6).repeat(2).view(-1, 1), torch.ones(12, 1), routing)
    touched = Counter(
        (ep_rank, slot)
        for ep_rank, slots in enumerate(plan.pair_slot.split(plan.pair_splits))
        for slot in set(slots.tolist())
    )
    assert len(touched) == 6


def test_weights_do_not_choose() -> None:
    """Two batches that differ in weights only are planned alike."""
    ids = torch.stack([torch.randperm(6)[:3] for _ in range(20)])
    plans = [plan_dispatch(ids, torch.rand(20, 3), layer_routing(REDUNDANT, 1)) for _ in range(2)]
    assert torch.equal(plans[0].row_token, plans[1].row_token)
    assert torch.equal(plans[0].pair_slot, plans[1].pair_slot)


@pytest.mark.parametrize("seed", range(60))
def test_the_native_twin_plans_alike(seed: int) -> None:
    """Random maps, batches and costs of touching; every tensor and split is the same."""
    generator = torch.Generator().manual_seed(seed)
    num_experts, ep_size = [(6, 3), (16, 4), (64, 8), (5, 1)][seed % 4]
    expert_map = _random_map(num_experts, ep_size, num_redundant=seed % 3, generator=generator)
    routing = layer_routing(expert_map, 0, pairs_per_touch=1 + seed % 9)
    num_tokens, top_k = int(torch.randint(0, 80, (1,), generator=generator)), min(num_experts, 1 + seed % 8)
    # A few popular experts, so that copies matter.
    scores = torch.rand(num_tokens, num_experts, generator=generator) + torch.rand(num_experts, generator=generator)
    ids, weights = scores.topk(top_k).indices, torch.rand(num_tokens, top_k, generator=generator)
    expected, actual = plan_dispatch(ids, weights, routing), plan_dispatch_native(ids, weights, routing)
    _check_types(actual)
    for name, value in vars(expected).items():
        other = getattr(actual, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


@pytest.mark.parametrize("expert_id", [-1, 6])
def test_the_native_twin_reads_nothing_outside(expert_id: int) -> None:
    """An id that is no expert is an error before memory is touched."""
    ids = torch.tensor([[0], [expert_id]])
    with pytest.raises(ValueError, match="no logical expert"):
        plan_dispatch_native(ids, torch.ones(2, 1), layer_routing(REDUNDANT, 0))


def test_the_fastest_planner_is_native_on_the_cpu() -> None:
    """And the reference elsewhere."""
    chosen: list[PlanDispatch] = [planner("cpu"), planner("meta")]
    assert chosen == [plan_dispatch_native, plan_dispatch]


def _random_map(num_experts: int, ep_size: int, *, num_redundant: int, generator: torch.Generator) -> ExpertMap:
    """Every expert once, contiguous, and random copies elsewhere in the redundant slots."""
    linear = linear_expert_map(1, num_experts, ep_size, num_redundant_slots=num_redundant)
    row = linear.physical_to_logical[0].tolist()
    for slot, held in enumerate(row):
        if held >= 0 or torch.rand(1, generator=generator) < 0.2:
            continue
        first = slot - slot % linear.slots_per_rank
        free = sorted(set(range(num_experts)) - set(row[first : first + linear.slots_per_rank]))
        if free:
            row[slot] = free[int(torch.randint(len(free), (1,), generator=generator))]
    return expert_map_from_rows([row], num_experts, ep_size)


def _check_types(plan: DispatchPlan) -> None:
    assert (plan.row_token.dtype, plan.pair_source.dtype) == (torch.int64, torch.int64)
    assert (plan.pair_row.dtype, plan.pair_slot.dtype) == (torch.int32, torch.int32)
    assert plan.pair_weight.dtype == torch.float32
    tensors = (plan.row_token, plan.pair_row, plan.pair_slot, plan.pair_weight, plan.pair_source)
    assert all(tensor.is_contiguous() for tensor in tensors)
