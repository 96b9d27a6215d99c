"""CallTally: sums over the calls of one expert rank. This is the reference; routing/native/tally.cpp has the same in
C++, an instruction or two for each pair, because it lies between a request and its answer.

Legend: L MoE layers, S slots of this rank, P pairs of a call.
"""

from __future__ import annotations

import threading
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from routing.load.cost_fit import cost_moments
from routing.load.expert_sample import ExpertSample

COUNTED = ("num_calls", "rows", "distinct", "pairs", "seconds", "cost")  # of an ExpertSample; norms are not


class CallTally(Protocol):
    """`add` and `take` may be called by any thread, and never work at the same time."""

    def add(self, moe_layer_idx: int, pair_slot: Tensor, num_rows: int, seconds: float) -> None:
        """A call was computed. pair_slot: int32 [P] in host memory, read at once. Raises ValueError for a layer or a
        slot that is not there."""

    def take(self, sample: ExpertSample) -> None:
        """Write the COUNTED sums since the last call into `sample`, and begin again."""


class ReferenceTally:
    """In numpy, under a lock."""

    def __init__(self, num_moe_layers: int, slots_per_rank: int) -> None:
        self._shape = (num_moe_layers, slots_per_rank)
        self._lock = threading.Lock()
        self._sums = ExpertSample.empty(*self._shape)

    def add(self, moe_layer_idx: int, pair_slot: Tensor, num_rows: int, seconds: float) -> None:
        num_layers, num_slots = self._shape
        slots = pair_slot.numpy()
        if not 0 <= moe_layer_idx < num_layers:
            raise ValueError("no such MoE layer")
        if slots.size and not 0 <= slots.min() <= slots.max() < num_slots:
            raise ValueError("a pair points at no slot")
        with self._lock:
            self._add(moe_layer_idx, np.bincount(slots, minlength=num_slots), num_rows, seconds)

    def take(self, sample: ExpertSample) -> None:
        with self._lock:
            sums, self._sums = self._sums, ExpertSample.empty(*self._shape)
        for name in COUNTED:
            getattr(sample, name)[:] = getattr(sums, name)

    def _add(self, moe_layer_idx: int, counts: NDArray[np.int64], num_rows: int, seconds: float) -> None:
        """counts: [S], the call's pairs."""
        sums, num_pairs, distinct = self._sums, int(counts.sum()), np.count_nonzero(counts)
        sums.num_calls[moe_layer_idx] += 1.0
        sums.rows[moe_layer_idx] += num_rows
        sums.distinct[moe_layer_idx] += distinct
        sums.pairs[moe_layer_idx] += counts
        sums.seconds[moe_layer_idx] += counts * (seconds / max(num_pairs, 1))
        sums.cost[:] += cost_moments(distinct, num_pairs, seconds)


def open_tally(num_moe_layers: int, slots_per_rank: int) -> CallTally:
    """The fastest there is."""
    try:
        from routing.load.native_tally import NativeTally
    except ImportError:  # not built
        return ReferenceTally(num_moe_layers, slots_per_rank)
    return NativeTally(num_moe_layers, slots_per_rank)
