"""Pictures of how a search went, layer by layer: from them a plan chooses how far to go in each layer. Pure.

Legend: L MoE layers, R EP ranks, S slots of a rank, P pictures of all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routing.experts import Int32Array
from routing.placement.contract import FloatArray
from routing.placement.tier_state import IntArray, TierState


@dataclass(frozen=True)
class Pictures:
    """All of a layer's, in their order, then the next layer's. A layer's first one is how it was.

    num_of_layer: int64 [L]. seconds: float64 [P], of the slowest rank. num_added: int64 [P], experts to load. slots:
    int32 [P, R, S], as a TierState has them.
    """

    num_of_layer: IntArray
    seconds: FloatArray
    num_added: IntArray
    slots: Int32Array

    @property
    def first_of_layer(self) -> IntArray:
        """[L]."""
        first: IntArray = np.cumsum(self.num_of_layer) - self.num_of_layer
        return first

    def by_layer(self, values: NDArray, absent: float) -> NDArray:  # type: ignore[type-arg]
        """[P] to [K, L], K being the most that a layer has; absent: what stands where a layer has fewer."""
        layers = np.repeat(np.arange(len(self.num_of_layer)), self.num_of_layer)
        table = np.full((self.num_of_layer.max(initial=0), len(self.num_of_layer)), absent, dtype=values.dtype)
        table[np.arange(len(values)) - self.first_of_layer[layers], layers] = values
        return table


class Album:
    """Takes pictures of a state while a search changes it. What is neither faster than all before nor loads less than
    the fastest of them is not kept: nobody would choose it."""

    def __init__(self, state: TierState) -> None:
        self._state = state
        self._taken: list[list[tuple[float, int, Int32Array]]] = [[] for _ in state.slots]
        self._fastest = np.full(len(state.slots), np.inf)
        self._added_of_fastest = np.zeros(len(state.slots), dtype=np.int64)
        self.take(np.arange(len(state.slots)))

    def take(self, layers: IntArray) -> None:
        """One of each of these layers."""
        state, seconds = self._state, self._state.seconds[layers].max(axis=1)
        is_faster = seconds < self._fastest[layers]
        is_kept = is_faster | (state.num_added[layers] < self._added_of_fastest[layers])
        self._fastest[layers[is_faster]] = seconds[is_faster]
        self._added_of_fastest[layers[is_faster]] = state.num_added[layers[is_faster]]
        kept = layers[is_kept]
        slowest, added, slots = seconds[is_kept], state.num_added[kept], state.slots[kept].astype(np.int32)
        for row, layer in enumerate(kept.tolist()):
            self._taken[layer].append((float(slowest[row]), int(added[row]), slots[row]))

    def pictures(self) -> Pictures:
        """All that were taken."""
        taken = [picture for layer in self._taken for picture in layer]
        return Pictures(
            num_of_layer=np.array([len(layer) for layer in self._taken], dtype=np.int64),
            seconds=np.array([picture[0] for picture in taken], dtype=np.float64),
            num_added=np.array([picture[1] for picture in taken], dtype=np.int64),
            slots=np.array([picture[2] for picture in taken], dtype=np.int32).reshape(-1, *self._state.slots.shape[1:]),
        )
