"""Meter: the seam through which code records. Instruments come from the registry, or not at all.

An instrument is made once, where its owner is born, and kept: `add`, `set` and `record` are for hot paths, making an
instrument is not. `RecordingMeter` keeps totals; `SilentMeter` is its twin for a process without telemetry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ops.telemetry.metrics import METRICS
from ops.telemetry.spec import Kind, MetricSpec, Owner

LabelValue = str | int


class Counter(Protocol):
    def add(self, amount: float = 1.0, /) -> None:
        """Count `amount` more, at least 0."""
        ...

    def raise_to(self, total: float, /) -> None:
        """For what counts by itself: its total since birth. A smaller one than before is ignored."""
        ...


class Gauge(Protocol):
    def set(self, value: float | None, /) -> None:
        """None: there is no value (any more), and none is shown."""
        ...


class Histogram(Protocol):
    def record(self, value: float, /) -> None:
        """A value that is not finite is ignored."""
        ...

    def record_many(self, values: Sequence[float] | NDArray[np.float64], /) -> None:
        """The same as `record` of each, for less."""
        ...


class Meter(ABC):
    """Makes instruments. The same name and labels give the same instrument.

    Every method raises ValueError for a name that is not declared, is of another kind or belongs to another owner, and
    for labels other than the declared ones or outside their values. Past a metric's bound of label sets an instrument
    is given that records nowhere.
    """

    def __init__(self, *owners: Owner) -> None:
        """owners: the roles of this process."""
        self.owners = frozenset((*owners, Owner.EVERY))

    @abstractmethod
    def counter(self, name: str, /, **labels: LabelValue) -> Counter: ...

    @abstractmethod
    def gauge(self, name: str, /, **labels: LabelValue) -> Gauge: ...

    @abstractmethod
    def histogram(self, name: str, /, **labels: LabelValue) -> Histogram: ...

    def _find(self, name: str, kind: Kind) -> MetricSpec:
        spec = METRICS.get(name)
        if spec is None:
            raise ValueError(f"metric {name!r} is not declared in ops/telemetry/metrics.py")
        if spec.kind is not kind:
            raise ValueError(f"metric {name!r} is a {spec.kind}, not a {kind}")
        if spec.owner not in self.owners:
            raise ValueError(f"metric {name!r} belongs to {spec.owner}, not to {', '.join(sorted(self.owners))}")
        return spec


class _Nothing:
    """Every instrument of a silent meter."""

    __slots__ = ()

    def add(self, amount: float = 1.0, /) -> None:
        pass

    def raise_to(self, total: float, /) -> None:
        pass

    def set(self, value: float | None, /) -> None:
        pass

    def record(self, value: float, /) -> None:
        pass

    def record_many(self, values: Sequence[float] | NDArray[np.float64], /) -> None:
        pass


NOTHING = _Nothing()


class SilentMeter(Meter):
    """Refuses what a recording meter refuses, and records nothing."""

    def counter(self, name: str, /, **labels: LabelValue) -> Counter:
        return self._nothing(name, Kind.COUNTER, labels)

    def gauge(self, name: str, /, **labels: LabelValue) -> Gauge:
        return self._nothing(name, Kind.GAUGE, labels)

    def histogram(self, name: str, /, **labels: LabelValue) -> Histogram:
        return self._nothing(name, Kind.HISTOGRAM, labels)

    def _nothing(self, name: str, kind: Kind, labels: dict[str, LabelValue]) -> _Nothing:
        label_values(self._find(name, kind), labels)
        return NOTHING


def label_values(spec: MetricSpec, labels: dict[str, LabelValue]) -> tuple[str, ...]:
    """In the declared order. Raises ValueError for other labels or values than declared."""
    if labels.keys() != set(spec.label_names):
        raise ValueError(f"metric {spec.name!r} has labels {list(spec.label_names)}, not {list(labels)}")
    values = tuple(str(labels[label.name]) for label in spec.labels)
    for label, value in zip(spec.labels, values, strict=True):
        if label.values and value not in label.values:
            raise ValueError(f"metric {spec.name!r}: {label.name} {value!r} is none of {', '.join(label.values)}")
    return values
