"""The search of the tier-time policy: both twins, bit by bit, and experts that are pieces too large to balance."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from routing.experts import EMPTY_SLOT, ExpertMap, expert_map_from_rows, linear_expert_map
from routing.placement.contract import FloatArray, Pin, PlacementProblem, TierCost, placement_policy
from routing.placement.holders import BoolArray, held_of, map_of_held
from routing.placement.pinning import pinned
from routing.placement.score import balancedness, rank_pairs, rank_seconds
from routing.placement.tier_native import native_meetings, native_search
from routing.placement.tier_pictures import Album
from routing.placement.tier_search import Search, open_search, search
from routing.placement.tier_spares import hold_meetings, open_meetings, with_spares
from routing.placement.tier_state import IntArray, TierState
from routing.placement.tier_time import TierTimePolicy

FREE = EMPTY_SLOT
COSTS = (TierCost(0.0, 1e-6), TierCost(16e-6, 1e-6), TierCost(50.0, 1.0), TierCost(1.0, 0.0))
SHAPES = ((1, 4), (2, 6), (3, 12), (4, 16), (5, 25), (8, 32), (8, 288), (12, 60))  # ranks, experts
both = pytest.mark.parametrize("search", [search, native_search])


def started(problem: PlacementProblem) -> TierState:
    return TierState(problem, pinned(held_of(problem.expert_map), problem))


def random_held(rng: np.random.Generator, like: ExpertMap) -> BoolArray:
    """Each expert somewhere, and copies in some of the slots that are left."""
    held = np.zeros((like.num_moe_layers, like.ep_size, like.num_logical_experts), dtype=np.bool_)
    for layer in held:
        ranks = rng.permutation(np.repeat(np.arange(like.ep_size), like.num_logical_experts // like.ep_size))
        layer[ranks, np.arange(like.num_logical_experts)] = True
        for rank in layer:
            num_more = int(rng.integers(0, like.slots_per_rank - np.count_nonzero(rank) + 1))
            rank[rng.choice(like.num_logical_experts, num_more)] = True
    return held


def random_load(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    """Skewed, or hot experts among equals, or a few whole numbers with many zeros, or all equal, or none at all."""
    kinds = (
        lambda: rng.random(shape) ** 4 * 40,
        lambda: np.where(rng.random(shape) < 0.06, 21.0, 1.0),
        lambda: rng.integers(0, 3, shape).astype(np.float64),
        lambda: np.ones(shape),
        lambda: np.zeros(shape),
    )
    return np.asarray(kinds[int(rng.choice(5, p=[0.4, 0.3, 0.2, 0.05, 0.05]))](), dtype=np.float64)


def random_problem(seed: int) -> PlacementProblem:
    """Ranks that hold anything, 0 to 8 more slots on each, all kinds of load and cost, in a third of them pins."""
    rng = np.random.default_rng(seed)
    ep_size, num_experts = SHAPES[seed % len(SHAPES)]
    base = linear_expert_map(3, num_experts, ep_size, num_redundant_slots=int(rng.integers(0, 9)))
    start = map_of_held(random_held(rng, base), base) if seed % 5 else base
    num_pins = min(2, start.slots_per_rank - num_experts // ep_size) if seed % 3 == 0 else 0
    experts = rng.choice(num_experts, num_pins, replace=False).tolist()
    pins = (Pin(int(rng.integers(3)), expert, tuple(rng.choice(ep_size, 1).tolist())) for expert in experts)
    return PlacementProblem(start, random_load(rng, (3, num_experts)), COSTS[seed // 8 % 4], pins=tuple(pins))


@pytest.mark.parametrize("seed", range(160))
def test_native_is_the_reference(seed: int) -> None:
    """The same pictures, and the same state afterwards, whatever the limit on copies."""
    problem = random_problem(seed)
    num_spare = problem.expert_map.num_physical_experts - problem.expert_map.num_logical_experts
    for max_redundant in {num_spare, num_spare // 2, 0}:
        states = started(problem), started(problem)
        pictures = search(states[0], max_redundant), native_search(states[1], max_redundant)
        for name in ("num_of_layer", "seconds", "num_added", "slots"):
            assert getattr(pictures[0], name).tolist() == getattr(pictures[1], name).tolist(), name
            assert getattr(pictures[0], name).dtype == getattr(pictures[1], name).dtype, name
        for name in ("slots", "holds", "copies", "seconds_of_copy", "seconds", "num_redundant", "num_added"):
            assert np.array_equal(getattr(states[0], name), getattr(states[1], name)), name


@both
@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_pictured_is_legal(search: Search, seed: int) -> None:
    """No expert lost or doubled, pins where they were, no more copies than allowed; seconds and moves counted anew."""
    problem = random_problem(seed)
    state = started(problem)
    max_redundant = max(int(state.num_redundant.max()), 5)
    before, began = held_of(problem.expert_map), state.holds[..., :-1].copy()
    pictures = search(state, max_redundant)
    layers = np.repeat(np.arange(3), pictures.num_of_layer)
    for layer, seconds, num_added, slots in zip(
        layers.tolist(), pictures.seconds, pictures.num_added, pictures.slots, strict=True
    ):
        rows = np.where(slots == state.nobody, FREE, slots).ravel().tolist()
        one = expert_map_from_rows([rows], problem.expert_map.num_logical_experts, problem.expert_map.ep_size)
        held = held_of(one)[0]
        assert (one.num_copies - 1).sum() <= max_redundant
        assert np.count_nonzero(held & ~before[layer]) == num_added
        assert rank_seconds(one, problem.load[[layer]], problem.cost).max() == pytest.approx(seconds)
        for pin in problem.pins:
            if pin.moe_layer_idx == layer:
                assert held[:, pin.logical_id].tolist() == began[layer, :, pin.logical_id].tolist()


@both
def test_a_piece_too_large_is_split_by_hand(search: Search) -> None:
    """3 + 3 against 5: nothing that can be moved, copied or exchanged helps. A copy of the 5 makes pieces of 2.5, which
    the rank with 3 + 3 takes and gives a 3 for."""
    start, load = expert_map_from_rows([[0, 1, FREE, FREE, 2, FREE, FREE, FREE]], 3, 2), np.array([[3.0, 3.0, 5.0]])
    planned = TierTimePolicy(search).plan(PlacementProblem(start, load, TierCost(0.0, 1.0)))
    assert rank_pairs(planned, load).tolist() == [[5.5, 5.5]]


def one_domain(num_layers: int, seed: int) -> FloatArray:
    """Half of the load on 14 of 288 experts, neighbours and all alike."""
    rng, load = np.random.default_rng(seed), np.ones((num_layers, 288))
    for row in load:
        first = int(rng.integers(0, 274))
        row[first : first + 14] += 288 / 14
    return load


@both
@pytest.mark.parametrize("num_redundant", [1, 2, 4, 8])
def test_hot_experts_all_alike_are_balanced_as_well_as_by_eplb(search: Search, num_redundant: int) -> None:
    """14 pieces on 8 ranks, each a quarter of a rank's time: trades alone come to an end at 0.92 and 0.96."""
    start, load = linear_expert_map(4, 288, 8, num_redundant_slots=num_redundant), one_domain(4, seed=35)
    problem = PlacementProblem(start, load, TierCost(0.0, 1e-6))
    ours, eplb = (policy.plan(problem) for policy in (TierTimePolicy(search), placement_policy("eplb")))
    balance = [balancedness(rank_pairs(planned, load)).mean() for planned in (ours, eplb)]
    moves = [np.count_nonzero(held_of(planned) & ~held_of(start)) for planned in (ours, eplb)]
    assert balance[0] >= balance[1] - 1e-9
    assert moves[0] <= moves[1] / 2


@both
@pytest.mark.parametrize(("max_moves", "max_copies"), [(0, None), (25, None), (None, 3), (60, 9)])
def test_splitting_keeps_to_the_limits(search: Search, max_moves: int | None, max_copies: int | None) -> None:
    """Of moves and of copies; a pinned expert, though as hot as the others, stays alone."""
    start, load = linear_expert_map(2, 288, 8, num_redundant_slots=2), one_domain(2, seed=1)
    hot = int(load[0].argmax())
    pins = (Pin(0, hot, (hot // 36,)),)
    problem = PlacementProblem(start, load, TierCost(0.0, 1e-6), max_moves, max_copies, pins)
    planned = TierTimePolicy(search).plan(problem)
    num_moves = np.count_nonzero(held_of(planned) & ~held_of(start))
    assert max_moves is None or num_moves <= max_moves
    assert max_copies is None or (planned.num_copies - 1).sum(axis=1).max() <= max_copies
    assert np.flatnonzero(held_of(planned)[0, :, hot]).tolist() == [hot // 36]


def test_what_nobody_would_choose_is_not_kept() -> None:
    """Ranks of 4 and 2 seconds. 5 and 1 with an expert to load is worse than that; 3 and 3 is better."""

    def at(number: int) -> IntArray:
        return np.array([number])

    start = expert_map_from_rows([[0, 1, FREE, FREE, 2, FREE, FREE, FREE]], 3, 2)
    state = TierState(PlacementProblem(start, np.array([[3.0, 1.0, 2.0]]), TierCost(0.0, 1.0)), held_of(start))
    album = Album(state)
    state.put(at(0), at(0), at(2), at(2))
    album.take(at(0))
    state.take(at(0), at(0), at(2))
    state.put(at(0), at(1), at(1), state.take(at(0), at(0), at(1)))
    album.take(at(0))
    pictures = album.pictures()
    assert (pictures.seconds.tolist(), pictures.num_added.tolist()) == ([4.0, 3.0], [0, 1])
    assert pictures.by_layer(pictures.seconds, np.inf).tolist() == [[4.0], [3.0]]


@pytest.mark.parametrize("seed", range(80))
def test_native_meetings_are_the_reference(seed: int) -> None:
    """The same copies for availability, with few moves and many, few copies and many, hosts of one rank and of two."""
    problem = random_problem(seed)
    ranks = range(problem.expert_map.ep_size)
    problem = replace(problem, host_of_rank=(None, tuple(ranks), tuple(rank // 2 for rank in ranks))[seed // 3 % 3])
    state = started(problem)
    native_search(state, max_redundant=5)
    state = state.of_slots(state.slots)
    limits: tuple[tuple[int, int | None], ...] = ((100, None), (100, 7), (int(state.num_redundant.max()) + 2, None))
    for max_redundant, max_moves in limits:
        reference = with_spares(state, max_redundant, max_moves, hold_meetings)
        assert np.array_equal(with_spares(state, max_redundant, max_moves, native_meetings), reference)


def test_the_fastest_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is built, which is wherever tests run; elsewhere the reference serves."""
    assert (open_search(), open_meetings()) == (native_search, native_meetings)
    monkeypatch.setitem(sys.modules, "routing.placement.tier_native", None)
    assert (open_search(), open_meetings()) == (search, hold_meetings)
