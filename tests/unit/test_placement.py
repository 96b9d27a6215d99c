"""Placement policies: layouts worked by hand, what holds for every problem, and how they compare."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from routing.experts import EMPTY_SLOT, ExpertMap, expert_map_from_rows, linear_expert_map
from routing.placement.contract import Pin, PlacementProblem, TierCost, placement_policy
from routing.placement.eplb import global_tables, hierarchical_tables, num_duplicates, pack, replicate
from routing.placement.holders import holders_of, map_of
from routing.placement.score import (
    balancedness,
    copy_seconds,
    layer_seconds,
    least_seconds,
    most_balanced,
    rank_pairs,
    rank_touched,
)

FREE = EMPTY_SLOT
PAIRS_ONLY, MIXED = TierCost(0.0, 1.0), TierCost(4.0, 1.0)
POLICIES = ("linear", "eplb", "eplb_hierarchical", "tier_time")


def load_of(rows: list[list[float]]) -> np.ndarray:
    return np.array(rows, dtype=np.float64)


def zipf(num_layers: int, num_experts: int, exponent: float, seed: int) -> np.ndarray:
    """Pairs per step, 64 tokens of eight experts each, popular experts anywhere."""
    rng = np.random.default_rng(seed)
    shares = 1.0 / np.arange(1, num_experts + 1) ** exponent
    load = np.stack([rng.permutation(shares) for _ in range(num_layers)])
    return 512.0 * load / load.sum(axis=1, keepdims=True)


def num_moves(before: ExpertMap, after: ExpertMap) -> int:
    """Experts that a rank holds now and did not hold before."""
    layers = range(before.num_moe_layers)
    pairs = [zip(holders_of(before, idx), holders_of(after, idx), strict=True) for idx in layers]
    return sum(len(new - old) for layer in pairs for old, new in layer)


class TestScore:
    """Two ranks: rank 0 holds 0 and 1, rank 1 holds 2 and a second 0. Loads 4, 1, 3: pairs 2 + 1 and 3 + 2."""

    MAP = expert_map_from_rows([[0, 1, 2, 0]], 3, 2)
    LOAD = np.array([[4.0, 1.0, 3.0]])

    def test_pairs_and_balance_by_hand(self) -> None:
        pairs = rank_pairs(self.MAP, self.LOAD)
        assert pairs.tolist() == [[3.0, 5.0]]
        assert balancedness(pairs).tolist() == [0.8]
        assert balancedness(np.zeros((2, 3))).tolist() == [1.0, 1.0]

    def test_touched_experts_by_hand(self) -> None:
        """A copy with so many expected pairs is touched with probability 1 - exp(-pairs)."""
        expected = [2 - np.exp(-2) - np.exp(-1), 2 - np.exp(-3) - np.exp(-2)]
        assert rank_touched(self.MAP, self.LOAD)[0].tolist() == pytest.approx(expected)

    def test_time_by_hand(self) -> None:
        """The slowest rank, touches and pairs together."""
        seconds = 10.0 * (2 - np.exp(-3) - np.exp(-2)) + 0.5 * 5
        assert layer_seconds(self.MAP, self.LOAD, TierCost(10.0, 0.5)).tolist() == pytest.approx([seconds])

    def test_bounds_by_hand(self) -> None:
        """Loads 12 and 4 on two ranks: without a copy the hot expert takes 12, with one the mean of 8 can be had."""
        load = load_of([[12.0, 4.0]])
        assert least_seconds(load, PAIRS_ONLY, 2, max_copies=0).tolist() == [12.0]
        assert least_seconds(load, PAIRS_ONLY, 2, max_copies=1).tolist() == [8.0]
        assert most_balanced(load, 2, max_copies=0).tolist() == pytest.approx([2 / 3])

    @pytest.mark.parametrize("seed", range(30))
    def test_no_map_beats_the_bound(self, seed: int) -> None:
        """Random maps with copies, both kinds of cost."""
        rng = np.random.default_rng(seed)
        base = linear_expert_map(1, 12, 3, num_redundant_slots=2)
        load = rng.random((1, 12)) ** 3 * 10
        holders = holders_of(base, 0)
        for rank in holders:
            rank |= set(rng.choice(12, 6, replace=False).tolist()[: 6 - len(rank)])
        expert_map = map_of([holders], base)
        for cost in (PAIRS_ONLY, MIXED):
            assert layer_seconds(expert_map, load, cost)[0] >= least_seconds(load, cost, 3, 6)[0] - 1e-9


class TestEplb:
    def test_replicate_by_hand(self) -> None:
        """Loads 9, 4, 2: the first copy goes to 0 (9), the second to 0 again (4.5), the third to 1 (4)."""
        assert replicate([9.0, 4.0, 2.0], 6) == [0, 1, 2, 0, 0, 1]

    def test_pack_by_hand(self) -> None:
        """Heaviest first into the lightest with room: 5 | 4, 3 -> second, 2 -> first, and so on."""
        assert pack([5.0, 4.0, 3.0, 2.0], 2) == [[0, 3], [1, 2]]
        assert pack([9.0, 1.0, 1.0, 1.0], 2) == [[0, 3], [1, 2]]

    def test_the_public_form_may_put_two_copies_on_a_rank(self) -> None:
        """With one very hot expert and nothing else to put beside it; the policy's form does not."""
        tables = global_tables([100.0, 1.0, 1.0, 1.0], 2, 4)
        assert num_duplicates(tables) > 0
        repaired = global_tables([100.0, 1.0, 1.0, 1.0], 2, 4, is_repaired=True)
        assert num_duplicates(repaired) == 0
        assert all(len(rank) <= 4 for rank in repaired)

    def test_groups_stay_on_a_node(self) -> None:
        """Four groups of two experts on two nodes of two ranks: partners share a node."""
        tables = hierarchical_tables([8.0, 1, 7, 1, 2, 1, 1, 1], [(0, 1), (2, 3)], 2, num_groups=4)
        nodes = [set(tables[0] + tables[1]), set(tables[2] + tables[3])]
        assert all(
            {2 * group, 2 * group + 1} <= nodes[0] or {2 * group, 2 * group + 1} <= nodes[1] for group in range(4)
        )


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("seed", range(12))
class TestEveryPolicy:
    def problem(self, seed: int) -> PlacementProblem:
        shape = [(12, 3), (16, 4), (64, 8)][seed % 3]
        expert_map = linear_expert_map(3, *shape, num_redundant_slots=seed % 4, map_epoch=seed)
        return PlacementProblem(expert_map, zipf(3, shape[0], 1.0, seed), (PAIRS_ONLY, MIXED)[seed % 2])

    def test_every_expert_is_placed_and_plans_repeat(self, name: str, seed: int) -> None:
        """ExpertMap itself refuses a lost expert and two copies on a rank; equal problems give equal maps."""
        problem = self.problem(seed)
        planned = placement_policy(name).plan(problem)
        assert planned == placement_policy(name).plan(problem)
        assert planned.map_epoch in (seed, seed + 1)

    def test_what_was_just_placed_stays(self, name: str, seed: int) -> None:
        """The same load again asks for no move, so a balancer comes to rest."""
        problem = self.problem(seed)
        planned = placement_policy(name).plan(problem)
        again = placement_policy(name).plan(PlacementProblem(planned, problem.load, problem.cost))
        if name == "tier_time":
            assert num_moves(planned, again) <= 2
        else:
            assert num_moves(planned, again) == 0


class TestTierTime:
    def plan(self, problem: PlacementProblem) -> ExpertMap:
        return placement_policy("tier_time").plan(problem)

    def test_an_exchange_by_hand(self) -> None:
        """Ranks with 9 + 8 and 2 + 1: 8 goes one way and 1 the other, so that both have 10."""
        current = expert_map_from_rows([[0, 1, FREE, 2, 3, FREE]], 4, 2)
        load = load_of([[9.0, 8.0, 2.0, 1.0]])
        planned = self.plan(PlacementProblem(current, load, PAIRS_ONLY, max_copies_per_layer=0))
        assert rank_pairs(planned, load).tolist() == [[10.0, 10.0]]

    def test_a_copy_by_hand(self) -> None:
        """One expert with nearly all of the load is shared by both ranks, at the price of one move."""
        current = expert_map_from_rows([[0, 1, FREE, 2, 3, FREE]], 4, 2)
        problem = PlacementProblem(current, load_of([[90.0, 1.0, 1.0, 1.0]]), PAIRS_ONLY, max_copies_per_layer=1)
        planned = self.plan(problem)
        assert planned.num_copies[0].tolist() == [2, 1, 1, 1]
        assert num_moves(current, planned) == 1

    def test_small_batches_are_not_copied_for_nothing(self) -> None:
        """Where touching costs and a step rarely has a second pair, a copy would only be read twice."""
        current = expert_map_from_rows([[0, 1, FREE, 2, 3, FREE]], 4, 2)
        load = load_of([[0.02, 0.01, 0.02, 0.01]])
        planned = self.plan(PlacementProblem(current, load, TierCost(1.0, 1e-6), max_copies_per_layer=0))
        assert planned is current

    @pytest.mark.parametrize("seed", range(6))
    def test_it_is_as_good_as_every_assignment(self, seed: int) -> None:
        """Six experts on two ranks of four slots, without copies: within 2 % of the best of all 2^6 assignments."""
        load = np.random.default_rng(seed).random((1, 6)) ** 2 * 10
        current = linear_expert_map(1, 6, 2, num_redundant_slots=1)
        best = min(
            max(sum(load[0, e] for e in range(6) if side[e] == rank) for rank in range(2))
            for side in product(range(2), repeat=6)
            if 2 <= sum(side) <= 4
        )
        planned = self.plan(PlacementProblem(current, load, PAIRS_ONLY, max_copies_per_layer=0))
        assert rank_pairs(planned, load).max() <= 1.1 * best

    @pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
    @pytest.mark.parametrize("num_redundant", [1, 2])
    @pytest.mark.parametrize("cost", [PAIRS_ONLY, MIXED])
    def test_it_is_never_slower_than_eplb_and_moves_far_less(
        self, exponent: float, num_redundant: int, cost: TierCost
    ) -> None:
        """Predicted time of the tier; and after the load has drifted by a tenth, at most a quarter of EPLB's moves."""
        start = linear_expert_map(1, 288, 8, num_redundant_slots=num_redundant)
        load = zipf(1, 288, exponent, seed=1)
        drifted = 0.9 * load + 0.1 * zipf(1, 288, exponent, seed=2)
        plans = {}
        for name in ("eplb", "tier_time"):
            first = placement_policy(name).plan(PlacementProblem(start, load, cost))
            second = placement_policy(name).plan(PlacementProblem(first, drifted, cost))
            plans[name] = (layer_seconds(first, load, cost).sum(), num_moves(first, second))
        assert plans["tier_time"][0] <= 1.02 * plans["eplb"][0]
        assert plans["tier_time"][1] <= plans["eplb"][1] / 4

    @pytest.mark.parametrize("max_moves", [0, 1, 7])
    def test_moves_are_bounded(self, max_moves: int) -> None:
        """And what few moves there are, gain."""
        start = linear_expert_map(3, 64, 8, num_redundant_slots=1)
        load = zipf(3, 64, 1.0, seed=3)
        planned = self.plan(PlacementProblem(start, load, PAIRS_ONLY, max_moves=max_moves))
        assert num_moves(start, planned) <= max_moves
        seconds = [layer_seconds(each, load, PAIRS_ONLY).sum() for each in (start, planned)]
        assert seconds[1] < seconds[0] or max_moves == 0

    def test_copies_of_a_layer_are_bounded(self) -> None:
        """Also where there are more already."""
        load = zipf(2, 16, 1.5, seed=4)
        start = linear_expert_map(2, 16, 4, num_redundant_slots=2)
        many = placement_policy("eplb").plan(PlacementProblem(start, load, PAIRS_ONLY))
        assert (many.num_copies - 1).sum(axis=1).max() > 2
        few = self.plan(PlacementProblem(many, load, PAIRS_ONLY, max_copies_per_layer=2))
        assert (few.num_copies - 1).sum(axis=1).max() <= 2

    def test_pins_are_kept(self) -> None:
        """Exactly on their ranks, whatever the load, and everybody else around them."""
        start = linear_expert_map(2, 16, 4, num_redundant_slots=1)
        pins = (Pin(0, 3, (0,)), Pin(0, 5, (2, 3)), Pin(1, 0, (3,)))
        planned = self.plan(PlacementProblem(start, zipf(2, 16, 1.5, seed=5), PAIRS_ONLY, pins=pins))
        for pin in pins:
            holders = holders_of(planned, pin.moe_layer_idx)
            assert tuple(rank for rank, held in enumerate(holders) if pin.logical_id in held) == pin.ep_ranks

    def test_spare_copies_are_on_another_host(self) -> None:
        """Ranks 0 and 1 share a host, 2 and 3 another. Cold experts cost nothing to hold twice: each crosses."""
        start = linear_expert_map(1, 16, 4, num_redundant_slots=4)
        load = load_of([[10.0, 1e-4, 1e-4, 1e-4] * 4])
        planned = self.plan(PlacementProblem(start, load, PAIRS_ONLY, host_of_rank=(0, 0, 1, 1)))
        holders = holders_of(planned, 0)
        for expert in set(range(16)) - {0, 4, 8, 12}:
            assert {rank // 2 for rank, held in enumerate(holders) if expert in held} == {0, 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"load": np.ones((1, 7))}, r"the load has shape \(1, 7\), the expert map \(1, 8\)"),
        ({"load": np.full((1, 8), np.nan)}, "finite"),
        ({"load": -np.ones((1, 8))}, "not negative"),
        ({"host_of_rank": (0,)}, "1 hosts for 2 ranks"),
        ({"pins": (Pin(1, 0, (0,)),)}, "MoE layer 1 is outside 0..0"),
        ({"pins": (Pin(0, 8, (0,)),)}, "expert 8 is outside 0..7"),
        ({"pins": (Pin(0, 1, (0, 2)),)}, r"ranks \[0, 2\] must be different ones of 0..1"),
        ({"pins": (Pin(0, 1, ()),)}, "must be different ones"),
        ({"pins": (Pin(0, 1, (0,)), Pin(0, 1, (1,)))}, "pinned twice"),
        ({"pins": tuple(Pin(0, expert, (0,)) for expert in range(6))}, "more experts are pinned to rank 0 than its 5"),
    ],
)
def test_problems_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    """At birth, with the numbers."""
    given: dict[str, object] = {
        "expert_map": linear_expert_map(1, 8, 2, num_redundant_slots=1),
        "load": np.ones((1, 8)),
        "cost": PAIRS_ONLY,
    }
    with pytest.raises(ValueError, match=message):
        PlacementProblem(**{**given, **changes})  # type: ignore[arg-type]


def test_costs_and_names_are_checked() -> None:
    """A tier that costs nothing cannot be balanced, and an unknown policy is told the known ones."""
    with pytest.raises(ValueError, match="not both 0"):
        TierCost(0.0, 0.0)
    with pytest.raises(ValueError, match="there are linear, eplb, eplb_hierarchical, tier_time"):
        placement_policy("magic")


def test_a_pin_without_room_says_so() -> None:
    """Four slots, four pinned or only copies."""
    start = linear_expert_map(1, 8, 2, num_redundant_slots=0)
    with pytest.raises(ValueError, match="no room for a pinned expert on rank 1"):
        placement_policy("tier_time").plan(
            PlacementProblem(start, np.ones((1, 8)), PAIRS_ONLY, pins=(Pin(0, 0, (0, 1)),))
        )


def test_the_scores_price_is_poisson() -> None:
    """Many pairs touch for certain, few pairs in proportion."""
    assert copy_seconds(100.0, TierCost(3.0, 1.0)) == pytest.approx(103.0)
    assert copy_seconds(1e-6, TierCost(3.0, 0.0)) == pytest.approx(3e-6)


def test_pairs_per_touch_by_hand() -> None:
    """Touching an expert costs as much as so many pairs: at least one, and where pairs are free as many as may be."""
    prices = {(16e-6, 1e-6): 16, (1e-6, 4e-6): 1, (0.0, 1e-6): 1, (1e-6, 0.0): 256, (1e-3, 1e-9): 256}
    assert {price: TierCost(*price).pairs_per_touch for price in prices} == prices
