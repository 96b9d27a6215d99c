"""The tier-time policy's parts: by hand, against every map there is, and at the full model's shape."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from routing.experts import EMPTY_SLOT, ExpertMap, expert_map_from_rows, linear_expert_map
from routing.placement.contract import FloatArray, Pin, PlacementProblem, TierCost, placement_policy
from routing.placement.decide import DecisionSettings, Pace, Verdict, decide, move_seconds
from routing.placement.eplb import global_tables, nodes_of, num_duplicates
from routing.placement.holders import held_of, holders_of, map_of
from routing.placement.score import balancedness, layer_seconds, least_seconds, rank_pairs, rank_seconds
from routing.placement.tier_budget import chosen_pictures
from routing.placement.tier_native import native_search
from routing.placement.tier_search import Search, search
from routing.placement.tier_state import TierState
from routing.placement.tier_time import TierTimePolicy

FREE = EMPTY_SLOT
PAIRS_ONLY, MIXED = TierCost(0.0, 1.0), TierCost(50.0, 1.0)
both = pytest.mark.parametrize("search", [search, native_search])


def plan(problem: PlacementProblem) -> ExpertMap:
    return placement_policy("tier_time").plan(problem)


def zipf(num_layers: int, num_experts: int, exponent: float, seed: int) -> FloatArray:
    """Pairs of 256 tokens of eight experts each, popular experts anywhere."""
    rng = np.random.default_rng(seed)
    shares = 1.0 / np.arange(1, num_experts + 1) ** exponent
    load = np.stack([rng.permutation(shares) for _ in range(num_layers)])
    return 2048.0 * load / load.sum(axis=1, keepdims=True)


def num_moves(before: ExpertMap, after: ExpertMap) -> int:
    return int(np.count_nonzero(held_of(after) & ~held_of(before)))


def random_problem(seed: int) -> PlacementProblem:
    """Any map with copies, any load, hosts or none, limits or none, and a few pins."""
    rng = np.random.default_rng(seed)
    ep_size, per_rank, spare = int(rng.integers(1, 6)), int(rng.integers(2, 6)), int(rng.integers(1, 4))
    base = linear_expert_map(2, ep_size * per_rank, ep_size, num_redundant_slots=spare, map_epoch=seed)
    layers = []
    for layer in range(2):
        holders = holders_of(base, layer)
        for held in holders:
            wanted = rng.choice(ep_size * per_rank, int(rng.integers(0, spare + 1)))
            held |= set(wanted.tolist())
        layers.append(holders)
    pins = tuple(
        Pin(
            layer, expert, tuple(sorted(rng.choice(ep_size, int(rng.integers(1, min(ep_size, 2) + 1)), False).tolist()))
        )
        for layer, expert in enumerate(rng.integers(0, ep_size * per_rank, 2).tolist())
    )
    return PlacementProblem(
        expert_map=map_of(layers, base),
        load=rng.random((2, ep_size * per_rank)) ** 3 * 40,
        cost=(PAIRS_ONLY, MIXED)[seed % 2],
        max_moves=(None, 3, 8)[seed % 3],
        max_copies_per_layer=(None, 2)[seed % 2],
        pins=pins if seed % 4 == 0 else (),
        host_of_rank=tuple(rank // 2 for rank in range(ep_size)) if seed % 5 == 0 else None,
    )


@both
@pytest.mark.parametrize("seed", range(60))
def test_whatever_the_problem_its_limits_are_kept(seed: int, search: Search) -> None:
    """ExpertMap refuses lost and doubled experts; moves, copies and pins are counted; nothing gets slower."""
    problem = random_problem(seed)
    planned = TierTimePolicy(search).plan(problem)
    assert planned == TierTimePolicy(search).plan(problem)
    pinned_copies = [sum(len(pin.ep_ranks) - 1 for pin in problem.pins if pin.moe_layer_idx == idx) for idx in (0, 1)]
    if problem.max_copies_per_layer is not None:
        copies = (planned.num_copies - 1).sum(axis=1)
        assert (copies <= np.maximum(problem.max_copies_per_layer, pinned_copies)).all()
    for pin in problem.pins:
        assert np.flatnonzero(held_of(planned)[pin.moe_layer_idx, :, pin.logical_id]).tolist() == list(pin.ep_ranks)
    if not problem.pins:
        if problem.max_moves is not None:
            assert num_moves(problem.expert_map, planned) <= problem.max_moves
        if problem.max_copies_per_layer is None:
            before, after = (layer_seconds(each, problem.load, problem.cost) for each in (problem.expert_map, planned))
            assert (after <= 1.003 * before).all()  # copies for availability may use what the tolerance leaves


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_depends_on_who_holds_what_not_on_slots(seed: int) -> None:
    """The same sets in other slots give the same sets."""
    problem = random_problem(seed)
    rng, current = np.random.default_rng(seed), problem.expert_map
    shuffled = rng.permuted(current.physical_to_logical.reshape(-1, current.slots_per_rank), axis=1)
    table = shuffled.reshape(current.physical_to_logical.shape)
    other = ExpertMap(current.map_epoch, current.ep_size, current.num_logical_experts, table)
    fields = {**vars(problem), "expert_map": other}
    assert np.array_equal(held_of(plan(problem)), held_of(plan(PlacementProblem(**fields))))


def every_map(like: ExpertMap) -> Iterator[ExpertMap]:
    """All maps of one layer on two ranks."""
    for sides in product(((0,), (1,), (0, 1)), repeat=like.num_logical_experts):
        holders = [{expert for expert, side in enumerate(sides) if rank in side} for rank in (0, 1)]
        if max(map(len, holders)) <= like.slots_per_rank:
            yield map_of([holders], like)


@pytest.mark.parametrize("cost", [PAIRS_ONLY, MIXED])
@pytest.mark.parametrize("seed", range(8))
def test_it_is_nearly_as_good_as_the_best_of_all_maps(seed: int, cost: TierCost) -> None:
    """Six experts on two ranks of four slots, with copies: 1 to 2 % off on average. The bound is below the best."""
    load = np.random.default_rng(seed).random((1, 6)) ** 2 * 100
    start = linear_expert_map(1, 6, 2, num_redundant_slots=1)
    best = min(layer_seconds(each, load, cost)[0] for each in every_map(start))
    assert layer_seconds(plan(PlacementProblem(start, load, cost)), load, cost)[0] <= 1.12 * best
    assert least_seconds(load, cost, 2, max_copies=2, slots_per_rank=4)[0] <= best + 1e-9


@both
@pytest.mark.parametrize("seed", range(10))
def test_the_state_agrees_with_the_score(seed: int, search: Search) -> None:
    """After a whole search: seconds, copies and moves that were kept up to date are those counted anew."""
    problem = random_problem(seed)
    state = TierState(problem, held_of(problem.expert_map))
    search(state, max_redundant=100)
    now = map_of([[set(np.flatnonzero(row)) for row in layer] for layer in state.holds[..., :-1]], problem.expert_map)
    assert state.seconds == pytest.approx(rank_seconds(now, problem.load, problem.cost))
    assert state.copies[:, :-1].tolist() == now.num_copies.tolist()
    assert state.num_added.sum() == num_moves(problem.expert_map, now)
    assert state.num_redundant.tolist() == (now.num_copies - 1).sum(axis=1).tolist()


@pytest.mark.parametrize("cost", [PAIRS_ONLY, TierCost(20e-6, 0.4e-6)])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("num_redundant", [1, 2])
def test_at_the_full_models_width(exponent: float, num_redundant: int, cost: TierCost) -> None:
    """As balanced and as fast as EPLB, a quarter of its moves after a drift, and at rest when nothing changes."""
    start = linear_expert_map(4, 288, 8, num_redundant_slots=num_redundant)
    load = zipf(4, 288, exponent, seed=1)
    drifted = 0.9 * load + 0.1 * zipf(4, 288, exponent, seed=2)
    first = {name: placement_policy(name).plan(PlacementProblem(start, load, cost)) for name in ("eplb", "tier_time")}
    seconds = {name: layer_seconds(each, load, cost).sum() for name, each in first.items()}
    assert seconds["tier_time"] <= 1.003 * seconds["eplb"]
    if cost == PAIRS_ONLY:
        balance = {name: balancedness(rank_pairs(each, load)).mean() for name, each in first.items()}
        assert balance["tier_time"] >= balance["eplb"] - 0.003
    moves = {
        name: num_moves(each, placement_policy(name).plan(PlacementProblem(each, drifted, cost)))
        for name, each in first.items()
    }
    assert moves["tier_time"] <= moves["eplb"] / 4
    assert num_moves(first["tier_time"], plan(PlacementProblem(first["tier_time"], load, cost))) <= 4


def test_ranks_back_each_other_where_a_copy_alone_would_cost_balance() -> None:
    """Four equal experts on two even ranks with a free slot each: 0 and 2 cross over, and both ranks stay at 2."""
    start = expert_map_from_rows([[0, 1, FREE, 2, 3, FREE]], 4, 2)
    planned = plan(PlacementProblem(start, np.ones((1, 4)), PAIRS_ONLY))
    assert holders_of(planned, 0) == [{0, 1, 2}, {0, 2, 3}]


def test_a_cold_copy_makes_room_for_a_hot_one() -> None:
    """Ranks are full; the second copy of 3, which nobody needs, gives way to one of 0."""
    start = expert_map_from_rows([[0, 3, 1, 3, 2, 4]], 5, 2)
    planned = plan(PlacementProblem(start, np.array([[90.0, 1.0, 1.0, 0.5, 1.0]]), PAIRS_ONLY))
    assert planned.num_copies[0, 0] == 2
    assert num_moves(start, planned) <= 2


def test_few_moves_go_where_they_gain_most_by_hand() -> None:
    """Layer 0 gains 6 for its first move, layer 1 gains 5 for two; layer 2 gets better for nothing."""
    seconds = np.array([[10.0, 10.0, 10.0], [4.0, 8.0, 9.0], [3.9, 5.0, 9.0]])
    num_added = np.array([[0, 0, 0], [1, 1, 0], [2, 2, 0]])
    chosen = [chosen_pictures(seconds, num_added, max_moves).tolist() for max_moves in (None, 4, 3, 1, 0)]
    assert chosen == [[2, 2, 1], [2, 2, 1], [1, 2, 1], [1, 0, 1], [0, 0, 1]]


def test_a_pin_moves_others_out_of_its_way() -> None:
    """Rank 1 is full of only copies, and rank 0 of copies that rank 2 has too: 5 pushes 3 over there."""
    start = expert_map_from_rows([[0, 1, 4, 2, 3, 6, 4, 5, 0]], 7, 3)
    problem = PlacementProblem(start, np.ones((1, 7)), PAIRS_ONLY, max_moves=0, pins=(Pin(0, 5, (1, 2)),))
    for name in ("tier_time", "eplb", "linear"):
        assert np.flatnonzero(held_of(placement_policy(name).plan(problem))[0, :, 5]).tolist() == [1, 2]


def test_the_bound_knows_how_few_slots_there_are() -> None:
    """Two ranks of two slots, loads 10, 3, 2, 1: who has the 10 has another one too."""
    load = np.array([[10.0, 3.0, 2.0, 1.0]])
    assert least_seconds(load, PAIRS_ONLY, 2, max_copies=0, slots_per_rank=2).tolist() == [11.0]
    assert least_seconds(load, PAIRS_ONLY, 2, max_copies=0).tolist() == [10.0]


@pytest.mark.parametrize("exponent", [1.0, 1.5])
def test_repaired_eplb_is_as_balanced_as_the_public_one(exponent: float) -> None:
    """And holds nothing twice, at the price of a few copies that find no rank."""
    load = zipf(1, 288, exponent, seed=3)
    public, repaired = (global_tables(load[0].tolist(), 8, 38, is_repaired=repair) for repair in (False, True))
    assert num_duplicates(repaired) == 0 <= num_duplicates(public)
    assert 8 * 38 - 8 <= sum(map(len, repaired)) <= 8 * 38
    start = linear_expert_map(1, 288, 8, num_redundant_slots=2)
    planned = map_of([[set(rank) for rank in repaired]], start)
    assert balancedness(rank_pairs(planned, load))[0] >= 0.99


@pytest.mark.parametrize(
    ("hosts", "nodes"),
    [
        (None, [[0, 1], [2, 3]]),
        ((7, 5, 7, 5), [[1, 3], [0, 2]]),
        ((0, 0, 0, 1), [[0, 1, 2, 3]]),
    ],
)
def test_nodes_are_the_hosts_if_these_are_alike(hosts: tuple[int, ...] | None, nodes: list[list[int]]) -> None:
    """Hosts with different numbers of ranks are one node."""
    assert [list(node) for node in nodes_of(4, hosts)] == nodes


def test_not_even_an_order_breaks_a_pin() -> None:
    """The sentence says why."""
    start = expert_map_from_rows([[0, 1, FREE, 2, 3, FREE]], 4, 2)
    better = expert_map_from_rows([[0, 2, FREE, 1, 3, FREE]], 4, 2)
    problem = PlacementProblem(start, np.array([[9.0, 8.0, 2.0, 1.0]]), PAIRS_ONLY, pins=(Pin(0, 2, (1,)),))
    decision = decide(problem, better, 2, DecisionSettings(10.0, 0.0, 0.0, 0.0), Pace(1.0, None, is_ordered=True))
    assert (decision.verdict, decision.should_rebalance) == (Verdict.ILLEGAL, False)
    assert "a pinned expert would not be on its ranks" in decision.reason


def test_the_price_of_a_move_by_hand() -> None:
    """16 MB at 160 MB/s take a tenth of a second, of which a tenth is lost to serving."""
    assert move_seconds(16_000_000, 160e6) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="cannot price"):
        move_seconds(1, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"load": np.ones((1, 8), dtype=np.int64)}, "float64"),
        ({"max_moves": -1}, "max_moves must not be negative"),
        ({"max_copies_per_layer": -1}, "max_copies_per_layer must not be negative"),
    ],
)
def test_limits_and_numbers_are_checked(changes: dict[str, object], message: str) -> None:
    """At birth."""
    given: dict[str, object] = {"expert_map": linear_expert_map(1, 8, 2), "load": np.ones((1, 8)), "cost": PAIRS_ONLY}
    with pytest.raises(ValueError, match=message):
        PlacementProblem(**{**given, **changes})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite"):
        TierCost(float("nan"), 1.0)
