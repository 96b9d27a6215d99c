"""Our policy: the least predicted time of the expert tier that few moves from the present map can reach. Pure.

All layers are searched from where their experts are. If that takes more moves than allowed, those are made that gain
most for each expert loaded. What is left of slots and moves makes experts available twice.
"""

from __future__ import annotations

import numpy as np

from routing.experts import ExpertMap
from routing.placement.contract import PlacementProblem
from routing.placement.holders import held_of, map_of_held
from routing.placement.pinning import pinned
from routing.placement.tier_budget import chosen_slots
from routing.placement.tier_search import Search, open_search
from routing.placement.tier_spares import with_spares
from routing.placement.tier_state import TierState


class TierTimePolicy:
    """See `contract.PlacementPolicy`. Respects everything in the problem; pins come before max_moves."""

    def __init__(self, search: Search | None = None) -> None:
        """search: the fastest there is unless given."""
        self._search = search or open_search()

    def plan(self, problem: PlacementProblem) -> ExpertMap:
        """Raises ValueError when there is no room for the pins."""
        max_redundant = _max_redundant(problem)
        state = TierState(problem, pinned(held_of(problem.expert_map), problem))
        _drop_surplus(state, max_redundant)
        state = state.of_slots(chosen_slots(self._search(state, max_redundant), problem.max_moves))
        num_left = None if problem.max_moves is None else problem.max_moves - int(state.num_added.sum())
        return map_of_held(with_spares(state, max_redundant, num_left), problem.expert_map)


def _max_redundant(problem: PlacementProblem) -> int:
    num_slots = problem.expert_map.num_physical_experts - problem.expert_map.num_logical_experts
    return num_slots if problem.max_copies_per_layer is None else min(num_slots, problem.max_copies_per_layer)


def _drop_surplus(state: TierState, max_redundant: int) -> None:
    """The redundant copies that take least, until no layer has too many; of equals those on the highest rank."""
    layers = np.arange(len(state.seconds))
    while len(layers := layers[state.num_redundant[layers] > max_redundant]):
        column, slots = layers[:, None], state.slots[layers].reshape(len(layers), -1)
        can_go = state.is_free[column, slots] & (state.copies[column, slots] > 1)
        price = np.where(can_go, state.seconds_of_copy[column, slots], np.inf)
        place = price.shape[1] - 1 - price[:, ::-1].argmin(axis=1)
        layers, place = layers[can_go.any(axis=1)], place[can_go.any(axis=1)]
        state.take(layers, *np.divmod(place, state.slots.shape[2]))
