"""`GateSums` in C++: same arguments, same sums but for the last bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from routing import _gate_sums
from routing.load.gate_sums import Step, joined, num_tokens
from routing.load.sample import BUCKET_EDGES, LoadSample

EDGES = np.ascontiguousarray(BUCKET_EDGES, dtype=np.float32)


class NativeGateSums:
    """See `routing.load.gate_sums.GateSums`."""

    def __init__(self, num_moe_layers: int, num_logical_experts: int) -> None:
        self._shape = (num_moe_layers, num_logical_experts)
        self._sums = _gate_sums.GateSums(*self._shape, EDGES.ctypes.data, EDGES.shape[1])
        self.num_steps = self._num_tokens = 0

    def add(self, group: Sequence[Step], margin_unit: Tensor | None) -> tuple[Tensor, int]:
        ids, weights, table = joined(group)
        num_layers, num_rows, top_k = ids.shape
        step_tokens = np.array([num_tokens(step) for step in group], dtype=np.int64)
        margins = torch.empty(num_layers, dtype=torch.float32)
        unit = 0 if margin_unit is None else margin_unit.data_ptr()
        inputs = (ids.data_ptr(), weights.data_ptr(), table.data_ptr(), step_tokens.ctypes.data, unit)
        self._sums.add(inputs, (num_rows, top_k, len(group)), margins.data_ptr())
        self.num_steps += len(group)
        self._num_tokens += num_rows
        return margins, num_rows

    def sample(self) -> LoadSample:
        sample = LoadSample.empty(*self._shape)
        arrays = (sample.tokens, sample.gate_mass, sample.soft, sample.distinct)
        tokens, gate_mass, shift, distinct = (array.ctypes.data for array in arrays)
        histograms, measure_sums = sample.histograms.ctypes.data, sample.measure_sums.ctypes.data
        self._sums.write((tokens, gate_mass, shift, distinct, histograms, measure_sums))
        sample.soft[:] += sample.tokens
        return replace(sample, num_steps=float(self.num_steps), num_tokens=float(self._num_tokens))
