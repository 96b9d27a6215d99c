"""ExpertMonitor: what one expert rank sees of its slots: pairs, seconds, and how large their outputs are.

Dispatch statistics alone do not show an expert that collapses or blows up; the norms of outputs do (reference,
step35_flash.md section 7). Knows nothing of maps: whoever takes a sample knows what its slots held.

Legend: L MoE layers, S slots of this rank, P pairs of a call, H hidden size.
"""

from __future__ import annotations

import threading

import numpy as np
from torch import Tensor

from routing.load.expert_sample import ExpertSample as ExpertSample
from routing.load.tally import open_tally

OUTPUTS_EVERY = 256  # calls of a layer of which one is looked at


class ExpertMonitor:
    """`record` belongs to the serving thread, `take` may be called by any."""

    def __init__(
        self, num_moe_layers: int, slots_per_rank: int, *, outputs_every: int = OUTPUTS_EVERY, device: str = "cpu"
    ) -> None:
        """outputs_every: calls of one layer of which one is looked at; each layer counts its own. device: where calls
        are computed."""
        self._shape = (num_moe_layers, slots_per_rank)
        self._outputs_every = outputs_every
        self._until_outputs = [1] * num_moe_layers
        self._tally = open_tally(*self._shape)
        self._is_on_host = device == "cpu"
        self._lock = threading.Lock()
        self._norms = ExpertSample.empty(*self._shape)

    def record(self, moe_layer_idx: int, pair_slot: Tensor, num_rows: int, seconds: float, unweighted: Tensor) -> None:
        """A call was computed. pair_slot: int32 [P], read at once, so that its memory may be used again. unweighted:
        its outputs, [P, H]; those of all but one call in `outputs_every` of a layer are passed over."""
        # From a GPU this waits, as checking the frame did before.
        slots = pair_slot if self._is_on_host else pair_slot.cpu()
        self._tally.add(moe_layer_idx, slots, num_rows, seconds)
        until_outputs = self._until_outputs[moe_layer_idx] - 1
        self._until_outputs[moe_layer_idx] = until_outputs or self._outputs_every
        if not until_outputs:
            self._look_at(moe_layer_idx, slots, unweighted)

    def take(self) -> ExpertSample | None:
        """Everything since the last call, and None if nothing was computed."""
        with self._lock:
            sample, self._norms = self._norms, ExpertSample.empty(*self._shape)
        self._tally.take(sample)
        return sample if sample.num_calls.any() else None

    def _look_at(self, moe_layer_idx: int, slots: Tensor, outputs: Tensor) -> None:
        norms = outputs.float().square().mean(dim=1).sqrt().nan_to_num(0.0, 0.0, 0.0).cpu().numpy()
        num_slots = self._shape[1]
        with self._lock:
            self._norms.norm_sums[moe_layer_idx] += np.bincount(slots.numpy(), norms, num_slots)
            self._norms.norm_counts[moe_layer_idx] += np.bincount(slots.numpy(), minlength=num_slots)
