"""Who holds what in all layers, side by side, and what it costs: the state that a search changes. Pure.

Changes are vectors: one entry for each of some layers, no layer twice. An empty slot holds the expert number E, which
has no load, so that looking something up needs no special case.

Legend: L MoE layers, R EP ranks, S slots of a rank, E logical experts, N layers that are changed.
"""

from __future__ import annotations

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

    slots: int64 [L, R, S], E where empty. holds: bool [L, R, E + 1]. copies, seconds_of_copy: [L, E + 1].
    is_free: bool [L, E + 1], experts that no pin holds. seconds: [L, R]. num_redundant: [L]. num_added: [L], experts
    that the ranks hold and did not hold in the problem's map.
    """

    problem: PlacementProblem
    held: BoolArray
    slots: IntArray = field(init=False)
    holds: BoolArray = field(init=False)
    copies: IntArray = field(init=False)
    is_free: BoolArray = field(init=False)
    seconds_of_copy: FloatArray = field(init=False)
    seconds: FloatArray = field(init=False)
    num_redundant: IntArray = field(init=False)
    num_added: IntArray = field(init=False)

    def __post_init__(self) -> None:
        shape = self.held.shape
        self._load = _padded(self.problem.load)
        self._began = _padded(held_of(self.problem.expert_map))
        self.holds = _padded(self.held)
        self.slots = _slots(self.held, self.problem.expert_map.slots_per_rank)
        self.copies = self.holds.sum(axis=1)
        self.is_free = np.ones((shape[0], shape[2] + 1), dtype=np.bool_)
        self.is_free[:, -1] = False
        for pin in self.problem.pins:
            self.is_free[pin.moe_layer_idx, pin.logical_id] = False
        self.seconds_of_copy = self.seconds_if(slice(None), slice(None), np.maximum(self.copies, 1))
        self.seconds = np.einsum("lre,le->lr", self.holds, self.seconds_of_copy)
        self.num_redundant = self.copies.sum(axis=1) - shape[2]
        self.num_added = np.count_nonzero(self.holds & ~self._began, axis=(1, 2))

    @property
    def nobody(self) -> int:
        """What an empty slot holds."""
        return int(self.holds.shape[2]) - 1

    def seconds_if(self, layers: IntArray | slice, experts: IntArray | slice, copies: IntArray) -> FloatArray:
        """Seconds of each copy of experts that have so many."""
        seconds: FloatArray = copy_seconds(self._load[layers, experts] / copies, self.problem.cost)
        return seconds

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
        self.num_added[layers] += sign * ~self._began[layers, ranks, experts]
        copies = np.maximum(self.copies[layers, experts], 1)  # 0 between taking and putting
        self.seconds_of_copy[layers, experts] = self.seconds_if(layers, experts, copies)
        self.seconds[layers] += self.seconds_of_copy[layers, experts, None] * self.holds[layers, :, experts]


def held_in(slots: IntArray, num_logical: int) -> BoolArray:
    """bool [L, R, E]: the inverse of how a state keeps its slots."""
    held = np.zeros((*slots.shape[:2], num_logical + 1), dtype=np.bool_)
    np.put_along_axis(held, slots, values=True, axis=2)
    return held[..., :num_logical]


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
