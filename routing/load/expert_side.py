"""ExpertMonitor: what one expert rank sees of its slots: pairs, seconds, and how large their outputs are.

Dispatch statistics alone do not show an expert that collapses or blows up; the norms of outputs do (reference,
step35_flash.md section 7). Knows nothing of maps: whoever takes a sample knows what its slots held.

Legend: L MoE layers, S slots of this rank, P pairs of a call, H hidden size.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from routing.load.cost_fit import cost_moments
from routing.load.expert_sample import ExpertSample as ExpertSample

OUTPUTS_EVERY = 32  # calls of a layer of which one is looked at
MAX_PENDING = 512  # calls that are counted together


Slots = Tensor | NDArray[np.integer[Any]]


class ExpertMonitor:
    """`record` and `record_outputs` belong to the serving thread, `take` may be called by any."""

    def __init__(self, num_moe_layers: int, slots_per_rank: int, *, outputs_every: int = OUTPUTS_EVERY) -> None:
        """outputs_every: calls of one layer of which one is looked at; each layer counts its own."""
        self._shape = (num_moe_layers, slots_per_rank)
        self._outputs_every = outputs_every
        self._num_outputs = [0] * num_moe_layers
        self._lock = threading.Lock()
        self._calls: list[tuple[int, NDArray[np.integer[Any]], int, float]] = []
        self._sample = ExpertSample.empty(*self._shape)

    def record(self, moe_layer_idx: int, pair_slot: Slots, num_rows: int, seconds: float) -> None:
        """A call was computed. pair_slot: [P], copied, so that its memory may be used again. Counted later: this lies
        between a request and its answer."""
        slots = _on_host(pair_slot).copy()
        with self._lock:
            self._calls.append((moe_layer_idx, slots, num_rows, seconds))
            if len(self._calls) >= MAX_PENDING:
                self._count()

    def record_outputs(self, moe_layer_idx: int, pair_slot: Slots, vectors: Tensor) -> None:
        """Unweighted outputs of a call, [P, H]; all but one call in `outputs_every` of a layer are passed over."""
        self._num_outputs[moe_layer_idx] += 1
        if (self._num_outputs[moe_layer_idx] - 1) % self._outputs_every or not len(vectors):
            return
        norms = vectors.float().square().mean(dim=1).sqrt().nan_to_num(0.0, 0.0, 0.0).cpu().numpy()
        slots = _on_host(pair_slot)
        with self._lock:
            self._sample.norm_sums[moe_layer_idx] += np.bincount(slots, norms, self._shape[1])
            self._sample.norm_counts[moe_layer_idx] += np.bincount(slots, minlength=self._shape[1])

    def take(self) -> ExpertSample | None:
        """Everything since the last call, and None if nothing was computed."""
        with self._lock:
            self._count()
            sample, self._sample = self._sample, ExpertSample.empty(*self._shape)
        return sample if sample.num_calls.any() else None

    def _count(self) -> None:
        """Add up the calls that wait."""
        if not self._calls:
            return
        given_layers, slots, given_rows, given_seconds = zip(*self._calls, strict=True)
        self._calls = []
        layers, rows, seconds = np.array(given_layers), np.array(given_rows), np.array(given_seconds)
        counts = _counts(slots, self._shape[1])
        pairs, distinct = counts.sum(axis=1), np.count_nonzero(counts, axis=1)
        each_s = seconds / np.maximum(pairs, 1)
        is_of_layer = (layers == np.arange(self._shape[0])[:, np.newaxis]).astype(np.float64)
        sums = self._sample
        for target, values in (
            (sums.num_calls, np.ones(len(layers))),
            (sums.rows, rows),
            (sums.distinct, distinct),
            (sums.pairs, counts),
            (sums.seconds, counts * each_s[:, np.newaxis]),
        ):
            target += is_of_layer @ values
        sums.cost[:] += cost_moments(distinct, pairs, seconds)


def _counts(calls: Sequence[NDArray[np.integer[Any]]], num_slots: int) -> NDArray[np.int64]:
    """[calls, S]: pairs of each slot in each call."""
    call = np.repeat(np.arange(len(calls)), [len(slots) for slots in calls])
    counts = np.bincount(call * num_slots + np.concatenate(calls), minlength=len(calls) * num_slots)
    return counts.reshape(len(calls), num_slots)


def _on_host(slots: Slots) -> NDArray[Any]:
    # On a GPU this waits for it, as checking the frame did before.
    return slots.cpu().numpy() if isinstance(slots, Tensor) else slots
