"""Numbers of every layer and expert as Prometheus text, straight from arrays: 12,096 series without an object for each.

The opt-in part of a scrape. What its numbers mean is in the registry; where they come from is not known here.

Legend: L MoE layers, E logical experts.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from prometheus_client.utils import floatToGoString

from ops.telemetry.metrics import METRICS
from ops.telemetry.spec import Kind

FloatArray = NDArray[np.float64]
_GO_EXPONENT = 1e6  # from here on Go writes an exponent where Python does not


class ExpertMatrix:
    """The latest arrays; `set` belongs to whoever has them, `text` to the scrape. One set replaces the one before."""

    def __init__(self, layer_ids: tuple[int, ...], num_logical_experts: int) -> None:
        """layer_ids: the model's number of each MoE layer. Raises ValueError past the bounds of the registry."""
        self._shape = (len(layer_ids), num_logical_experts)
        self._layer_ids = layer_ids
        self._arrays: Mapping[str, FloatArray] = {}
        self._heads: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
        self._lock = threading.Lock()
        layer, expert = next(spec for spec in METRICS.values() if spec.kind is Kind.MATRIX).labels
        if len(layer_ids) > layer.bound or num_logical_experts > expert.bound:
            raise ValueError(f"expert matrix {self._shape} must be within ({layer.bound}, {expert.bound})")

    def set(self, arrays: Mapping[str, FloatArray]) -> None:
        """arrays: [L, E] by metric name; copied. Raises ValueError for another name or shape."""
        for name, array in arrays.items():
            if name not in METRICS or METRICS[name].kind is not Kind.MATRIX:
                raise ValueError(f"metric {name!r} is no expert matrix")
            if array.shape != self._shape:
                raise ValueError(f"metric {name!r} has shape {array.shape}, must be {self._shape}")
        self._arrays = {name: np.array(array, dtype=np.float64) for name, array in arrays.items()}

    def text(self, process: Mapping[str, str]) -> bytes:
        """process: labels that every line gets."""
        return "".join(self._one(name, array, process) for name, array in self._arrays.items()).encode()

    def _one(self, name: str, array: FloatArray, process: Mapping[str, str]) -> str:
        heads = self._line_heads(name, process)
        parts = [""] * (2 * len(heads))
        parts[0::2] = heads
        parts[1::2] = _numbers(array)
        spec = METRICS[name]
        return f"# HELP {name} {spec.help}\n# TYPE {name} gauge" + "".join(parts) + "\n"

    def _line_heads(self, name: str, process: Mapping[str, str]) -> list[str]:
        """Everything of each line but its number, made once."""
        key = name, tuple(process.items())
        with self._lock:
            heads = self._heads.get(key)
            if heads is None:
                self._heads = {known: lines for known, lines in self._heads.items() if known[1] == key[1]}
                heads = self._heads[key] = [
                    _line_head(name, {**process, "layer": str(layer_id), "expert": str(expert)})
                    for layer_id in self._layer_ids
                    for expert in range(self._shape[1])
                ]
            return heads


def _line_head(name: str, labels: Mapping[str, str]) -> str:
    listed = ",".join(f'{label}="{_escaped(value)}"' for label, value in sorted(labels.items()))
    return f"\n{name}{{{listed}}} "


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _numbers(array: FloatArray) -> list[str]:
    """As Prometheus writes them. Loads are small and finite: those cost one `repr` each."""
    values: list[float] = array.ravel().tolist()
    is_plain = bool(np.all(array < _GO_EXPONENT) and np.all(array > -np.inf))
    return list(map(float.__repr__ if is_plain else floatToGoString, values))
