"""Totals of one made-up process, in the form in which the admin port shows a member's metrics. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ops.telemetry.metrics import METRICS
from ops.telemetry.spec import Kind


class Recorder:
    """Counters and gauges by name and label values, histograms by name."""

    def __init__(self) -> None:
        self._values: dict[str, dict[tuple[str, ...], float]] = {}
        self._counts: dict[str, np.ndarray[Any, np.dtype[np.int64]]] = {}
        self._sums: dict[str, float] = {}

    def add(self, name: str, amount: float, *labels: object) -> None:
        assert METRICS[name].kind is Kind.COUNTER, f"{name} is no counter"
        values = self._values.setdefault(name, {})
        key = tuple(map(str, labels))
        values[key] = values.get(key, 0.0) + float(amount)

    def set(self, name: str, value: float, *labels: object) -> None:
        assert METRICS[name].kind is Kind.GAUGE, f"{name} is no gauge"
        self._values.setdefault(name, {})[tuple(map(str, labels))] = float(value)

    def observe(self, name: str, values: Iterable[float]) -> None:
        buckets = METRICS[name].buckets
        seen = np.fromiter(values, dtype=np.float64)
        counts = self._counts.setdefault(name, np.zeros(len(buckets) + 1, dtype=np.int64))
        # A value on a bound belongs to the bucket below it.
        counts += np.bincount(np.searchsorted(buckets, seen), minlength=counts.size)
        self._sums[name] = self._sums.get(name, 0.0) + float(seen.sum())

    def to_json(self) -> dict[str, list[Any]]:
        """name -> [[label values, value], ...]; a histogram's value is its counts and their total."""
        plain: dict[str, list[Any]] = {
            name: [[list(labels), round(value, 6)] for labels, value in values.items()]
            for name, values in self._values.items()
        }
        for name, counts in self._counts.items():
            plain[name] = [[[], {"counts": counts.tolist(), "total": round(self._sums[name], 6)}]]
        return plain
