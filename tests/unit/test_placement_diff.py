"""Migrations: every stage is legal, every expert is served all the time, and the last stage is what was wanted."""

from __future__ import annotations

import numpy as np
import pytest

from routing.experts import EMPTY_SLOT, ExpertMap, expert_map_from_rows, joined_slots, linear_expert_map
from routing.placement.contract import PlacementProblem, TierCost, placement_policy
from routing.placement.decide import DecisionSettings, Pace, Verdict, decide
from routing.placement.diff import Move, migration
from routing.placement.holders import holders_of

FREE = EMPTY_SLOT


def check(current: ExpertMap, target: ExpertMap) -> int:
    """Raises AssertionError unless the migration is legal; returns its number of stages. ExpertMap itself refuses a
    stage without some expert."""
    steps, before = migration(current, target), current
    for stage in steps.stages:
        after = stage.expert_map
        assert after.map_epoch == before.map_epoch + 1
        old, new = before.physical_to_logical, after.physical_to_logical
        is_filled = (new != FREE) & (new != old)
        assert (old[is_filled] == FREE).all(), "only empty slots are filled"
        filled = {
            (int(layer), int(new[layer, physical]), *divmod(int(physical), before.slots_per_rank))
            for layer, physical in np.argwhere(is_filled)
        }
        assert filled == {(move.moe_layer_idx, move.logical_id, move.ep_rank, move.slot) for move in stage.moves}
        for ep_rank in range(before.ep_size):
            joined_slots([before, after], ep_rank)  # raises if both could not be served at once
        before = after
    for layer in range(target.num_moe_layers):
        assert holders_of(before, layer) == holders_of(target, layer)
    return len(steps.stages)


def test_nothing_to_do() -> None:
    """Equal sets in other slots are no change."""
    assert check(expert_map_from_rows([[0, 1, 2, 3]], 4, 2), expert_map_from_rows([[1, 0, 2, 3]], 4, 2)) == 0


def test_a_copy_by_hand() -> None:
    """One move into the free slot, one stage."""
    current, target = (
        expert_map_from_rows([row], 3, 2) for row in ([0, 1, FREE, 2, FREE, FREE], [0, 1, 2, 2, FREE, FREE])
    )
    (stage,) = migration(current, target).stages
    assert stage.moves == (Move(0, 2, 0, 2),)


def test_a_swap_between_ranks_with_one_free_slot_each_by_hand() -> None:
    """Both newcomers come into the free slots; the old ones go in the same stage, as they are served elsewhere then."""
    current = expert_map_from_rows([[0, 1, FREE, 2, 3, FREE]], 4, 2)
    target = expert_map_from_rows([[0, 2, FREE, 1, 3, FREE]], 4, 2)
    (stage,) = migration(current, target).stages
    assert stage.expert_map.physical_to_logical.tolist() == [[0, FREE, 2, FREE, 3, 1]]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([0, 1, 0, 2], [1, 2, 0, 2]),  # full ranks: a copy that is not wanted gives way
        ([0, 1, 2, 0], [0, 2, 1, 0]),  # a swap where the only redundant copy is wanted: it goes and comes back
        ([0, 1, 2, 3, 4, 5, 4, 5], [0, 2, 1, 3, 4, 5, 4, 5]),  # the copies are on ranks that are not concerned
        ([0, 1, 2, 3, 4, FREE], [0, 2, 1, 3, 4, FREE]),  # so is the only empty slot
    ],
)
def test_where_there_is_little_room(before: list[int], after: list[int]) -> None:
    """A detour, but a legal one."""
    num_ranks = len(before) // 2
    num_experts = max(before) + 1
    check(*(expert_map_from_rows([row], num_experts, num_ranks) for row in (before, after)))


def test_without_any_slot_to_spare_nothing_can_move() -> None:
    """The message says what is needed."""
    current, target = (expert_map_from_rows([row], 4, 2) for row in ([0, 1, 2, 3], [0, 2, 1, 3]))
    with pytest.raises(ValueError, match="at least one redundant slot per rank is needed"):
        migration(current, target)


def test_maps_of_different_shapes_have_no_migration() -> None:
    """Another number of slots is another cluster."""
    with pytest.raises(ValueError, match="same layers, ranks and slots"):
        migration(linear_expert_map(1, 4, 2), linear_expert_map(1, 4, 2, num_redundant_slots=1))


@pytest.mark.parametrize("seed", range(40))
def test_every_sequence_of_maps_serves_every_expert_at_every_step(seed: int) -> None:
    """Both policies in turn, loads that have nothing to do with each other, little and much room."""
    rng = np.random.default_rng(seed)
    num_experts, ep_size = [(8, 2), (16, 4), (12, 3), (64, 8)][seed % 4]
    current = linear_expert_map(2, num_experts, ep_size, num_redundant_slots=1 + seed % 3)
    for step in range(4):
        load = rng.random((2, num_experts)) ** 4 * 20
        policy = placement_policy(("tier_time", "eplb")[(seed + step) % 2])
        target = policy.plan(PlacementProblem(current, load, TierCost(2.0, 1.0)))
        check(current, target)
        stages = migration(current, target).stages
        current = stages[-1].expert_map if stages else current


class TestDecide:
    """Two ranks with 9 + 8 and 2 + 1 pairs; the candidate has 9 + 2 and 8 + 1: 17 seconds become 11."""

    CURRENT = expert_map_from_rows([[0, 1, FREE, 2, 3, FREE]], 4, 2)
    BETTER = expert_map_from_rows([[0, 2, FREE, 1, 3, FREE]], 4, 2)
    PROBLEM = PlacementProblem(CURRENT, np.array([[9.0, 8.0, 2.0, 1.0]]), TierCost(0.0, 1.0))
    SETTINGS = DecisionSettings(horizon_s=10.0, min_gain=0.1, interval_s=60.0, move_s=3.0)

    @pytest.mark.parametrize(
        ("candidate", "settings", "pace", "verdict"),
        [
            (BETTER, {}, Pace(1.0, None), Verdict.PAYS),
            (BETTER, {}, Pace(1.0, 59.0), Verdict.TOO_SOON),
            (BETTER, {}, Pace(1.0, 61.0), Verdict.PAYS),
            (BETTER, {"min_gain": 0.36}, Pace(1.0, None), Verdict.TOO_SMALL),
            (BETTER, {"move_s": 31.0}, Pace(1.0, None), Verdict.TOO_DEAR),
            (BETTER, {}, Pace(0.0, None), Verdict.TOO_DEAR),
            (BETTER, {"min_gain": 0.9}, Pace(1.0, 1.0, is_ordered=True), Verdict.ORDERED),
            (CURRENT, {}, Pace(1.0, None, is_ordered=True), Verdict.NO_MOVES),
        ],
    )
    def test_verdicts(self, candidate: ExpertMap, settings: dict[str, float], pace: Pace, verdict: Verdict) -> None:
        """Gain 6 of 17 seconds a step, over ten seconds, for two moves."""
        moves = 0 if candidate is self.CURRENT else 2
        chosen = DecisionSettings(**{**vars(self.SETTINGS), **settings})
        decision = decide(self.PROBLEM, candidate, moves, chosen, pace)
        assert decision.verdict is verdict
        assert decision.should_rebalance == (verdict in (Verdict.PAYS, Verdict.ORDERED))

    def test_the_figures_by_hand(self) -> None:
        """And the sentence that an operator reads."""
        decision = decide(self.PROBLEM, self.BETTER, 2, self.SETTINGS, Pace(1.0, None))
        assert (decision.seconds_per_step, decision.cost_s) == (6.0, 6.0)
        assert decision.gain == pytest.approx(6 / 17)
        assert (decision.balancedness_before, decision.balancedness_after) == pytest.approx((10 / 17, 10 / 11))
        assert (
            decision.reason
            == "2 moves would save 35.3 % of the expert tier's time, 60 s within 10 s for a price of 6 s"
        )
