"""Our policy: the least predicted time of the expert tier that few moves from the present map can reach. Pure.

Each layer is searched from where its experts are; the change that gains most for each expert loaded comes first, over
all layers, until nothing is worth a move or the moves are used up. What is left of slots and moves makes experts
available twice: hottest first, on another host, and never at the cost of balance.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from routing.experts import ExpertMap
from routing.placement.contract import PlacementProblem
from routing.placement.holders import holders_of, map_of
from routing.placement.layer_search import Change, LayerProblem, LayerSearch
from routing.placement.pinning import pinned_holders


class TierTimePolicy:
    """See `contract.PlacementPolicy`. Respects everything in the problem."""

    def plan(self, problem: PlacementProblem) -> ExpertMap:
        """Raises ValueError when there is no room for the pins."""
        expert_map = problem.expert_map
        searches = [_search(problem, idx) for idx in range(expert_map.num_moe_layers)]
        num_left = float("inf") if problem.max_moves is None else float(problem.max_moves)
        num_left = _spend(searches, LayerSearch.best_change, num_left)
        _spend(searches, LayerSearch.spare_change, num_left)
        return map_of([search.holders for search in searches], expert_map)


def _spend(searches: list[LayerSearch], best: Callable[[LayerSearch], Change | None], num_left: float) -> float:
    """Apply what is worth most, layer by layer, while moves are left. Returns how many are."""
    queue: list[tuple[float, int, Change]] = []

    def offer(layer: int) -> None:
        change = best(searches[layer])
        if change is not None:
            heapq.heappush(queue, (-change.worth, layer, change))

    for layer in range(len(searches)):
        offer(layer)
    while queue:
        _, layer, change = heapq.heappop(queue)
        if change.num_moves <= num_left:
            searches[layer].apply(change)
            num_left -= change.num_moves
            offer(layer)
    return num_left


def _search(problem: PlacementProblem, moe_layer_idx: int) -> LayerSearch:
    expert_map = problem.expert_map
    num_slots = expert_map.num_physical_experts - expert_map.num_logical_experts
    max_copies = num_slots if problem.max_copies_per_layer is None else min(num_slots, problem.max_copies_per_layer)
    pins = problem.pins_of(moe_layer_idx)
    layer = LayerProblem(
        load=problem.load[moe_layer_idx].tolist(),
        per_expert_s=problem.cost.per_expert_s,
        per_pair_s=problem.cost.per_pair_s,
        slots_per_rank=expert_map.slots_per_rank,
        max_copies=max_copies,
        pinned=frozenset(pins),
        host_of_rank=problem.host_of_rank or tuple(range(expert_map.ep_size)),
    )
    holders = pinned_holders(holders_of(expert_map, moe_layer_idx), pins, expert_map.slots_per_rank)
    search = LayerSearch(layer, holders)
    while search.num_copies > max_copies and (change := _surplus(search)) is not None:
        search.apply(change)
    return search


def _surplus(search: LayerSearch) -> Change | None:
    """The lightest redundant copy, to be dropped."""
    copies = [
        (search.weight[expert], expert, ranks[-1])
        for expert, ranks in enumerate(search.ranks_of)
        if len(ranks) > 1 and expert not in search.problem.pinned
    ]
    return Change(0.0, (), (min(copies)[1:],)) if copies else None
