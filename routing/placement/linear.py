"""The linear policy: contiguous blocks of experts, as the model was trained, and no redundant copies. Pure."""

from __future__ import annotations

from routing.experts import ExpertMap
from routing.placement.contract import PlacementProblem
from routing.placement.holders import map_of


class LinearPolicy:
    """See `contract.PlacementPolicy`. Knows no load, and no pins."""

    def plan(self, problem: PlacementProblem) -> ExpertMap:
        current = problem.expert_map
        per_rank = current.num_logical_experts // current.ep_size
        blocks = [set(range(rank * per_rank, (rank + 1) * per_rank)) for rank in range(current.ep_size)]
        return map_of([blocks] * current.num_moe_layers, current)
