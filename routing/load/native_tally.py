"""`CallTally` in C++: same arguments, same sums."""

from __future__ import annotations

from torch import Tensor

from routing import _tally
from routing.load.expert_sample import ExpertSample
from routing.load.tally import COUNTED


class NativeTally:
    """See `routing.load.tally.CallTally`. Python's own lock keeps `add` and `take` apart."""

    def __init__(self, num_moe_layers: int, slots_per_rank: int) -> None:
        self._tally = _tally.CallTally(num_moe_layers, slots_per_rank)
        self._add = self._tally.add

    def add(self, moe_layer_idx: int, pair_slot: Tensor, num_rows: int, seconds: float) -> None:
        # A check of what the tensor is would take as long as counting it; kernels have read it as the same before.
        self._add(moe_layer_idx, pair_slot.data_ptr(), pair_slot.numel(), num_rows, seconds)

    def take(self, sample: ExpertSample) -> None:
        num_calls, rows, distinct, pairs, seconds, cost = (getattr(sample, name).ctypes.data for name in COUNTED)
        self._tally.take((num_calls, rows, distinct, pairs, seconds, cost))
