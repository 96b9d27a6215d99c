"""The linear policy: contiguous blocks of experts, as the model was trained, and no redundant copies. Pure."""

from __future__ import annotations

import numpy as np

from routing.experts import ExpertMap
from routing.placement.contract import PlacementProblem
from routing.placement.holders import held_of, map_of_held
from routing.placement.pinning import pinned


class LinearPolicy:
    """See `contract.PlacementPolicy`. Knows neither load nor limits; pins are put right afterwards."""

    def plan(self, problem: PlacementProblem) -> ExpertMap:
        """Raises ValueError when there is no room for the pins."""
        held = np.zeros_like(held_of(problem.expert_map))
        experts = np.arange(held.shape[2])
        held[:, experts * held.shape[1] // held.shape[2], experts] = True
        return map_of_held(pinned(held, problem), problem.expert_map)
