"""Evacuation maps: what can be covered elsewhere is, hottest first, and nothing else is disturbed. Random maps."""

from __future__ import annotations

import numpy as np
import pytest

from routing.experts import EMPTY_SLOT, ExpertMap, expert_map_from_rows, linear_expert_map
from routing.placement.contract import Pin, PlacementProblem, TierCost
from routing.placement.diff import migration
from routing.placement.evacuation import evacuated, uncovered
from routing.placement.holders import BoolArray, held_of, map_of_held

FREE = EMPTY_SLOT
COST = TierCost(1.0, 1.0)


def random_map(rng: np.random.Generator, layers: int, experts: int, ranks: int, redundant: int) -> ExpertMap:
    """Experts anywhere, with copies in some of the redundant slots."""
    slots = experts // ranks + redundant
    rows = []
    for _ in range(layers):
        table = np.full((ranks, slots), FREE)
        for place, expert in enumerate(rng.permutation(experts)):
            table[place % ranks, place // ranks] = expert
        for rank, slot in np.argwhere(table == FREE):
            others = np.setdiff1d(np.arange(experts), table[rank])
            if len(others) and rng.random() < 0.6:
                table[rank, slot] = rng.choice(others)
        rows.append(table.ravel().tolist())
    return expert_map_from_rows(rows, experts, ranks)


def random_pins(rng: np.random.Generator, expert_map: ExpertMap) -> tuple[Pin, ...]:
    """Some experts, where they are."""
    held = held_of(expert_map)
    chosen = {(int(rng.integers(held.shape[0])), int(rng.integers(held.shape[2]))) for _ in range(rng.integers(4))}
    return tuple(
        Pin(layer, expert, tuple(np.flatnonzero(held[layer, :, expert]).tolist())) for layer, expert in sorted(chosen)
    )


def rank_sizes(held: BoolArray) -> np.ndarray:
    return held.sum(axis=2)


@pytest.mark.parametrize("seed", range(120))
def test_what_can_be_covered_is(seed: int) -> None:
    """Of experts that no pin holds, as many have a copy on a rank that stays as those ranks have slots for: all, or all
    slots. No rank exceeds its slots, no cover is lost, no pin broken, doomed ranks keep what they hold."""
    rng = np.random.default_rng(seed)
    ranks = int(rng.integers(2, 6))
    expert_map = random_map(rng, 2, ranks * int(rng.integers(1, 5)), ranks, int(rng.integers(0, 4)))
    load = rng.random((2, expert_map.num_logical_experts)) ** 3
    pins = random_pins(rng, expert_map)
    problem = PlacementProblem(expert_map, load, COST, pins=pins)
    doomed = sorted(rng.choice(ranks, size=rng.integers(1, ranks + 1), replace=False).tolist())
    before = held_of(expert_map)
    after = evacuated(before, problem, doomed)
    staying = [rank for rank in range(ranks) if rank not in doomed]
    assert (rank_sizes(after) <= expert_map.slots_per_rank).all()
    assert np.array_equal(after[:, doomed], before[:, doomed])
    assert (uncovered(after, doomed) <= uncovered(before, doomed)).all(), "whoever was safe stays so"
    for pin in pins:
        assert tuple(np.flatnonzero(after[pin.moe_layer_idx, :, pin.logical_id])) == pin.ep_ranks
    for layer in range(2):
        pinned = list(problem.pins_of(layer))
        slots = len(staying) * expert_map.slots_per_rank - int(after[layer, staying][:, pinned].sum())
        free = np.setdiff1d(np.arange(expert_map.num_logical_experts), pinned)
        assert int((~uncovered(after, doomed)[layer, free]).sum()) == min(len(free), slots)
        was_left, is_left = uncovered(before, doomed)[layer], uncovered(after, doomed)[layer]
        new, left = was_left & ~is_left, np.intersect1d(np.flatnonzero(is_left), free)
        if len(left) and new.any():
            assert load[layer, left].max() <= load[layer, new].min(), "the hottest come first"


@pytest.mark.parametrize("seed", range(40))
def test_the_way_there_is_a_migration(seed: int) -> None:
    """With a slot to move through, every stage is a map in which each expert is served."""
    rng = np.random.default_rng(seed)
    expert_map = random_map(rng, 2, 12, 4, 1 + int(rng.integers(0, 3)))
    problem = PlacementProblem(expert_map, rng.random((2, 12)), COST)
    target = map_of_held(evacuated(held_of(expert_map), problem, [1], [1]), expert_map)
    steps = migration(expert_map, target)
    last = steps.stages[-1].expert_map if steps.stages else expert_map
    assert np.array_equal(held_of(last), held_of(target))


@pytest.mark.parametrize("seed", range(40))
def test_a_rank_that_leaves_keeps_only_what_it_alone_has(seed: int) -> None:
    """And what is pinned to it; a rank that is only marked keeps everything."""
    rng = np.random.default_rng(seed)
    expert_map = random_map(rng, 2, 12, 4, 2)
    pins = random_pins(rng, expert_map)
    problem = PlacementProblem(expert_map, rng.random((2, 12)), COST, pins=pins)
    before = held_of(expert_map)
    after = evacuated(before, problem, [0, 2], [2])
    assert np.array_equal(after[:, 0], before[:, 0])
    pinned = np.zeros_like(before[:, 2])
    for pin in pins:
        pinned[pin.moe_layer_idx, pin.logical_id] = True
    assert np.array_equal(after[:, 2], before[:, 2] & (uncovered(after, [0, 2]) | pinned))


def test_by_hand() -> None:
    """Four ranks of two experts and one free slot. Rank 3 goes: its two experts fit; of ranks 2 and 3 together the four
    find two free slots, the hottest get them."""
    expert_map = linear_expert_map(1, 8, 4, num_redundant_slots=1)
    load = np.array([[1.0, 1.0, 2.0, 2.0, 5.0, 8.0, 6.0, 7.0]])
    problem = PlacementProblem(expert_map, load, COST)
    one = evacuated(held_of(expert_map), problem, [3])
    assert [np.flatnonzero(row).tolist() for row in one[0]] == [[0, 1, 7], [2, 3, 6], [4, 5], [6, 7]]
    both = evacuated(held_of(expert_map), problem, [2, 3])
    assert [np.flatnonzero(row).tolist() for row in both[0]] == [[0, 1, 5], [2, 3, 7], [4, 5], [6, 7]]
    assert np.flatnonzero(uncovered(both, [2, 3])[0]).tolist() == [4, 6]


def test_a_second_copy_gives_way() -> None:
    """Of experts that are safe anyway the coldest first: 0 for 4, then 2 for 5, each on the busier of its ranks."""
    expert_map = expert_map_from_rows([[0, 1, 2, 2, 3, 0, 4, 5, FREE]], 6, 3)
    load = np.array([[1.0, 1.0, 4.0, 1.0, 9.0, 1.0]])
    after = evacuated(held_of(expert_map), PlacementProblem(expert_map, load, COST), [2])
    assert [np.flatnonzero(row).tolist() for row in after[0]] == [[0, 1, 2], [3, 4, 5], [4, 5]]


def test_nobody_can_help_when_all_go() -> None:
    """Nothing changes, whether or not there is a deadline."""
    expert_map = linear_expert_map(1, 4, 2, num_redundant_slots=1)
    problem = PlacementProblem(expert_map, np.ones((1, 4)), COST)
    assert np.array_equal(evacuated(held_of(expert_map), problem, [0, 1], [0, 1]), held_of(expert_map))
