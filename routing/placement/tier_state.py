"""Who holds what in all layers, side by side, and what it costs: the state that a search changes. Pure.

Changes are vectors: one entry for each of some layers, no layer twice. An empty slot holds the expert number E, which
has no load, so that looking something up needs no special case.

Legend: L MoE layers, R EP ranks, S slots of a rank, E logical experts, N layers that are changed.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from routing.placement.contract import FloatArray, PlacementProblem
from routing.placement.holders import BoolArray, held_of
from routing.placement.score import copy_seconds

IntArray = NDArray[np.int64]


@dataclass
class TierState:
    """held: bool [L, R, E] to begin with, pins in their places. Seconds are expected ones of a step.

    slots: int64 [L, R, S], E where empty. holds, began: bool [L, R, E + 1], now and in the problem's map. copies,
    seconds_of_copy: [L, E + 1]. seconds_by_copies: [L, E + 1, C], of one copy of an expert that has so many.
    is_free: bool [L, E + 1], experts that no pin holds. seconds: [L, R]. num_redundant: [L]. num_added: [L], experts
    that the ranks hold and did not hold in the problem's map.
    """

    problem: PlacementProblem
    held: BoolArray
    slots: IntArray = field(init=False)
    holds: BoolArray = field(init=False)
    began: BoolArray = field(init=False)
    copies: IntArray = field(init=False)
    is_free: BoolArray = field(init=False)
    seconds_of_copy: FloatArray = field(init=False)
    seconds_by_copies: FloatArray = field(init=False)
    seconds: FloatArray = field(init=False)
    num_redundant: IntArray = field(init=False)
    num_added: IntArray = field(init=False)

    def __post_init__(self) -> None:
        num_layers, _, num_experts = self.held.shape
        self.began = _padded(held_of(self.problem.expert_map))
        self.seconds_by_copies = _seconds_by_copies(self.problem)
        self.is_free = np.ones((num_layers, num_experts + 1), dtype=np.bool_)
        self.is_free[:, -1] = False
        for pin in self.problem.pins:
            self.is_free[pin.moe_layer_idx, pin.logical_id] = False
        self.slots = _slots(self.held, self.problem.expert_map.slots_per_rank)
        self._count()

    def of_slots(self, slots: IntArray) -> TierState:
        """Another state of the same problem. slots: [L, R, S], E where empty, in any order."""
        other = copy(self)
        other.slots = np.sort(slots, axis=2)
        other._count()
        return other

    def _count(self) -> None:
        """Everything that follows from the slots."""
        num_layers, _, num_experts = self.held.shape
        self.holds = np.zeros((*self.held.shape[:2], num_experts + 1), dtype=np.bool_)
        np.put_along_axis(self.holds, self.slots, values=True, axis=2)
        self.holds[..., -1] = False
        self.copies = np.count_nonzero(self.holds, axis=1)
        column = np.arange(num_layers)[:, None]
        self.seconds_of_copy = self.seconds_if(column, np.arange(num_experts + 1), self.copies)
        self.seconds = self.seconds_of_copy[column[..., None], self.slots].sum(axis=2)
        self.num_redundant = self.copies.sum(axis=1) - num_experts
        self.num_added = np.count_nonzero(self.holds & ~self.began, axis=(1, 2))

    @property
    def nobody(self) -> int:
        """What an empty slot holds."""
        return int(self.holds.shape[2]) - 1

    def seconds_if(self, layers: IntArray, experts: IntArray, copies: IntArray) -> FloatArray:
        """Seconds of each copy of experts that have so many; of none, between taking and putting, as of one."""
        seconds: FloatArray = self.seconds_by_copies[layers, experts, np.maximum(copies, 1)]
        return seconds

    def mean(self, layers: IntArray) -> FloatArray:
        """[N]: seconds of a rank, added up from the first to the last: another order has other bits."""
        mean: FloatArray = np.cumsum(self.seconds[layers], axis=1)[:, -1] / self.seconds.shape[1]
        return mean

    def put(self, layers: IntArray, ranks: IntArray, places: IntArray, experts: IntArray) -> None:
        """Into empty slots of ranks without these experts. All [N]."""
        self.slots[layers, ranks, places] = experts
        self._change(layers, ranks, experts, is_held=True)

    def take(self, layers: IntArray, ranks: IntArray, places: IntArray) -> IntArray:
        """Empty slots that are taken. All [N]. Returns who was in them."""
        experts = self.slots[layers, ranks, places]
        self.slots[layers, ranks, places] = self.nobody
        self._change(layers, ranks, experts, is_held=False)
        return experts

    def _change(self, layers: IntArray, ranks: IntArray, experts: IntArray, *, is_held: bool) -> None:
        sign = 1 if is_held else -1
        self.seconds[layers] -= self.seconds_of_copy[layers, experts, None] * self.holds[layers, :, experts]
        self.holds[layers, ranks, experts] = is_held
        self.copies[layers, experts] += sign
        self.num_redundant[layers] += sign
        self.num_added[layers] += sign * ~self.began[layers, ranks, experts]
        self.seconds_of_copy[layers, experts] = self.seconds_if(layers, experts, self.copies[layers, experts])
        self.seconds[layers] += self.seconds_of_copy[layers, experts, None] * self.holds[layers, :, experts]


def _seconds_by_copies(problem: PlacementProblem) -> FloatArray:
    """[L, E + 1, C]: up to one copy more than an expert can have; 0 copies are not divided by, and cost as one."""
    expert_map = problem.expert_map
    most = min(expert_map.ep_size, 1 + expert_map.num_physical_experts - expert_map.num_logical_experts)
    copies = np.maximum(np.arange(most + 2), 1)
    seconds: FloatArray = copy_seconds(_padded(problem.load)[..., None] / copies, problem.cost)
    return seconds


def _slots(held: BoolArray, slots_per_rank: int) -> IntArray:
    """int64 [L, R, S]: experts ascending, then empty slots: a plan depends on sets, not on where in a rank they are."""
    slots = np.full((*held.shape[:2], slots_per_rank), held.shape[2])
    layers, ranks, experts = np.nonzero(held)
    rank = layers * held.shape[1] + ranks
    slots[layers, ranks, np.arange(len(rank)) - np.searchsorted(rank, rank)] = experts
    return slots


def _padded(table: NDArray[np.generic]) -> NDArray:  # type: ignore[type-arg]
    """With a column of zeros for the expert in empty slots."""
    return np.concatenate([table, np.zeros((*table.shape[:-1], 1), dtype=table.dtype)], axis=-1)
