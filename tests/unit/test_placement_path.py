"""Migrations between maps that have nothing to do with each other: legal at every stage, whatever room there is."""

from __future__ import annotations

import numpy as np
import pytest

from routing.experts import EMPTY_SLOT, ExpertMap, expert_map_from_rows, joined_slots, linear_expert_map
from routing.placement.diff import Migration, migration
from routing.placement.holders import Holders, held_of, map_of
from routing.placement.layer_path import LayerPath

FREE = EMPTY_SLOT


def random_pair(rng: np.random.Generator) -> tuple[ExpertMap, ExpertMap]:
    """Two maps of two layers; none, few or all of the redundant slots filled."""
    ep_size, per_rank, spare = int(rng.integers(2, 6)), int(rng.integers(1, 5)), int(rng.integers(0, 4))
    like = linear_expert_map(2, ep_size * per_rank, ep_size, num_redundant_slots=spare)
    first, second = (map_of([_holders(rng, like) for _ in range(2)], like) for _ in range(2))
    return first, second


def _holders(rng: np.random.Generator, like: ExpertMap) -> Holders:
    """Everybody somewhere, not evenly, and then copies where there is room."""
    holders: Holders = [set() for _ in range(like.ep_size)]
    for expert in rng.permutation(like.num_logical_experts).tolist():
        roomy = [held for held in holders if len(held) < like.slots_per_rank]
        roomy[int(rng.integers(len(roomy)))].add(expert)
    fullness = rng.choice([0.0, 0.5, 1.0])
    for held in holders:
        for expert in rng.permutation(like.num_logical_experts).tolist():
            if len(held) < like.slots_per_rank and rng.random() < fullness:
                held.add(expert)
    return holders


def check(steps: Migration, current: ExpertMap, target: ExpertMap) -> None:
    """ExpertMap refuses a stage without some expert or with one twice on a rank; the rest is checked here."""
    before = current
    for stage in steps.stages:
        old, new = before.physical_to_logical, stage.expert_map.physical_to_logical
        is_filled = (new != FREE) & (new != old)
        assert (old[is_filled] == FREE).all(), "only empty slots are filled"
        assert not np.array_equal(old, new), "no stage does nothing"
        assert len(stage.moves) == np.count_nonzero(is_filled)
        for move in stage.moves:
            assert stage.expert_map.local_experts(move.ep_rank)[move.moe_layer_idx, move.slot] == move.logical_id
        for ep_rank in range(before.ep_size):
            joined_slots([before, stage.expert_map], ep_rank)  # raises if both could not be served at once
        assert stage.expert_map.map_epoch == before.map_epoch + 1
        before = stage.expert_map
    assert np.array_equal(held_of(before), held_of(target))


@pytest.mark.parametrize("seed", range(150))
def test_from_any_map_to_any_other(seed: int) -> None:
    """Wherever a layer has an empty slot or a redundant copy."""
    current, target = random_pair(np.random.default_rng(seed))
    tables = zip(current.physical_to_logical, current.num_copies, strict=True)
    if any((row != FREE).all() and (copies == 1).all() for row, copies in tables):
        current = target  # covered by the next test
    steps = migration(current, target)
    check(steps, current, target)
    assert steps.num_moves >= np.count_nonzero(held_of(target) & ~held_of(current))


@pytest.mark.parametrize("seed", range(5))
def test_full_ranks_without_a_copy_cannot_move(seed: int) -> None:
    """Any change at all."""
    rows = np.random.default_rng(seed).permutation(12).reshape(2, 6)
    current, target = (expert_map_from_rows([row], 12, 2) for row in (rows.ravel().tolist(), rows.T.ravel().tolist()))
    with pytest.raises(ValueError, match="at least one redundant slot per rank is needed"):
        migration(current, target)


def test_two_circles_of_full_ranks_are_broken_side_by_side() -> None:
    """0-1 and 2-3 exchange an expert each; rank 4 has the only free slots. Each circle costs one move more."""
    current = expert_map_from_rows([[0, 1, 2, 3, 4, 5, 6, 7, FREE, FREE]], 8, 5)
    target = expert_map_from_rows([[0, 2, 1, 3, 4, 6, 5, 7, FREE, FREE]], 8, 5)
    steps = migration(current, target)
    check(steps, current, target)
    assert (steps.num_moves, len(steps.stages)) == (6, 3)


def test_what_makes_room_comes_first() -> None:
    """One free slot on rank 0. 3 leaves the full rank 1, which then has room for 0; the copy of 2 can wait."""
    path = LayerPath([[0, 1, FREE], [2, 3, 4]], [{1, 2, 3}, {0, 2, 4}])
    assert next(path.steps()) == [[0, 1, 3], [2, FREE, 4]]


def test_copies_that_are_not_wanted_go_before_anything_is_loaded() -> None:
    """Full ranks, and the target keeps no copy of 0 on rank 1: the first stage only lets go."""
    current = expert_map_from_rows([[0, 1, 2, 0]], 3, 2)
    target = expert_map_from_rows([[0, 1, 2, 1]], 3, 2)
    steps = migration(current, target)
    check(steps, current, target)
    assert [len(stage.moves) for stage in steps.stages] == [0, 1]
