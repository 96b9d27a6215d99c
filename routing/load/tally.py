"""CallTally: what one expert rank computes, added up: pairs of its slots, seconds, and how large outputs are.

Dispatch statistics alone do not show an expert that collapses or blows up; the norms of outputs do (reference,
step35_flash.md section 7). Knows nothing of maps: whoever takes a sample knows what its slots held. This is the
reference; routing/native/tally.h has the same in C++, where native kernels count without coming back to Python, because
all this lies between a request and its answer.

Legend: L MoE layers, S slots of this rank, P pairs of a call, H hidden size.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import fields
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from routing.load.cost_fit import cost_moments
from routing.load.expert_sample import ExpertSample

OUTPUTS_EVERY = 256  # calls of a layer of which one has its outputs looked at, the first and so on


class LayerTally(Protocol):
    """One MoE layer's calls. Any thread may count."""

    @property
    def address(self) -> int:
        """Of the LayerTally in C++ for as long as this object lives; 0 where there is none."""

    def add(self, pair_slot: Tensor, num_rows: int, seconds: float, outputs: Tensor) -> None:
        """A call was computed. pair_slot: int32 [P], read at once, so that its memory may be used again. outputs:
        unweighted, [P, H]; those of all but one call in `outputs_every` are passed over. From a GPU this waits.
        Raises ValueError for a slot that is not there, and counts nothing then."""


class CallTally(Protocol):
    """All layers' calls."""

    @property
    def layers(self) -> Sequence[LayerTally]:
        """[L]."""

    def take(self) -> ExpertSample | None:
        """Everything since the last call of this, by any thread; None if nothing was computed."""


_BY_LAYER = tuple(field.name for field in fields(ExpertSample) if field.name != "cost")


class ReferenceLayer:
    """In numpy, under a lock."""

    address = 0

    def __init__(self, slots_per_rank: int, outputs_every: int) -> None:
        self._num_slots, self._outputs_every = slots_per_rank, outputs_every
        self._until_outputs = 1
        self._lock = threading.Lock()
        self._sums = ExpertSample.empty(1, slots_per_rank)

    def add(self, pair_slot: Tensor, num_rows: int, seconds: float, outputs: Tensor) -> None:
        slots = pair_slot.cpu().numpy()
        if slots.size and not 0 <= slots.min() <= slots.max() < self._num_slots:
            raise ValueError("a pair points at no slot")
        with self._lock:
            self._add(np.bincount(slots, minlength=self._num_slots), num_rows, seconds)
            self._until_outputs -= 1
            if not self._until_outputs:
                self._until_outputs = self._outputs_every
                self._look_at(slots, outputs)

    def take(self) -> ExpertSample:
        """The sums since the last call, L = 1."""
        with self._lock:
            sums, self._sums = self._sums, ExpertSample.empty(1, self._num_slots)
        return sums

    def _add(self, counts: NDArray[np.int64], num_rows: int, seconds: float) -> None:
        """counts: [S], the call's pairs."""
        sums, num_pairs, distinct = self._sums, int(counts.sum()), np.count_nonzero(counts)
        sums.num_calls[:] += 1.0
        sums.rows[:] += num_rows
        sums.distinct[:] += distinct
        sums.pairs[:] += counts
        sums.seconds[:] += counts * (seconds / max(num_pairs, 1))
        sums.cost[:] += cost_moments(distinct, num_pairs, seconds)

    def _look_at(self, slots: NDArray[np.int32], outputs: Tensor) -> None:
        squares = outputs.double().square().mean(dim=1)
        norms = squares.sqrt().nan_to_num(0.0, 0.0, 0.0).cpu().numpy()  # of a broken vector: 0
        self._sums.norm_sums[:] += np.bincount(slots, norms, self._num_slots)
        self._sums.norm_counts[:] += np.bincount(slots, minlength=self._num_slots)


class ReferenceTally:
    """See `CallTally`."""

    def __init__(self, num_moe_layers: int, slots_per_rank: int, outputs_every: int = OUTPUTS_EVERY) -> None:
        self._shape = (num_moe_layers, slots_per_rank)
        self.layers = tuple(ReferenceLayer(slots_per_rank, outputs_every) for _ in range(num_moe_layers))

    def take(self) -> ExpertSample | None:
        sample = ExpertSample.empty(*self._shape)
        for idx, layer in enumerate(self.layers):
            taken = layer.take()
            sample.cost[:] += taken.cost
            for name in _BY_LAYER:
                getattr(sample, name)[idx] = getattr(taken, name)[0]
        return sample if sample.num_calls.any() else None


def open_tally(num_moe_layers: int, slots_per_rank: int) -> CallTally:
    """The fastest there is."""
    try:
        from routing.load.native_tally import NativeTally
    except ImportError:  # not built
        return ReferenceTally(num_moe_layers, slots_per_rank)
    return NativeTally(num_moe_layers, slots_per_rank)
