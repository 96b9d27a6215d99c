"""`CallTally` in C++: same arguments, same sums."""

from __future__ import annotations

import torch
from torch import Tensor

from routing import _tally
from routing.load.expert_sample import ExpertSample
from routing.load.tally import OUTPUTS_EVERY


class NativeLayer:
    """See `routing.load.tally.LayerTally`."""

    __slots__ = ("_layer", "address")

    def __init__(self, layer: _tally.LayerTally) -> None:
        self._layer = layer  # which keeps the memory at its address
        self.address = layer.address

    def add(self, pair_slot: Tensor, num_rows: int, seconds: float, outputs: Tensor) -> None:
        slots = pair_slot.cpu()
        if self._layer.add(slots.data_ptr(), slots.numel(), num_rows, seconds):
            vectors = outputs.to("cpu", torch.float32).contiguous()
            self._layer.look_at(slots.data_ptr(), slots.numel(), vectors.data_ptr(), vectors.shape[1])


class NativeTally:
    """See `routing.load.tally.CallTally`."""

    def __init__(self, num_moe_layers: int, slots_per_rank: int, outputs_every: int = OUTPUTS_EVERY) -> None:
        self._shape = (num_moe_layers, slots_per_rank)
        self._tally = _tally.CallTally(num_moe_layers, slots_per_rank, outputs_every)
        self.layers = tuple(NativeLayer(self._tally.layer(idx)) for idx in range(num_moe_layers))

    def take(self) -> ExpertSample | None:
        sample = ExpertSample.empty(*self._shape)
        per_slot = (sample.pairs, sample.seconds, sample.norm_sums, sample.norm_counts)
        num_calls, rows, distinct = (array.ctypes.data for array in (sample.num_calls, sample.rows, sample.distinct))
        pairs, seconds, norm_sums, norm_counts = (array.ctypes.data for array in per_slot)
        cost = sample.cost.ctypes.data
        self._tally.take((num_calls, rows, distinct), (pairs, seconds, norm_sums, norm_counts), cost)
        return sample if sample.num_calls.any() else None
