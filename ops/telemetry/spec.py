"""What a metric is: name, kind, unit, labels and their bound, help, owner, and the names that others know it by. Pure.

Knows no metric. `metrics` has them all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

PREFIX = "step35_"
MAX_LABEL_SETS = 2000  # what Ray keeps of one metric on one node; ours go another way, but should fit that one too


class Kind(StrEnum):
    """How values of a metric add up."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    MATRIX = "matrix"  # a gauge of every layer and expert: text from one array, never an instrument


class Owner(StrEnum):
    """The process role that records a metric. Its value is the process label `role`."""

    GATEWAY = "gateway"
    ATTENTION = "attention"
    EXPERT = "expert"
    COORDINATOR = "coordinator"
    EVERY = "every"  # what a process says of its own telemetry


Unit = Literal["", "seconds", "bytes", "ratio", "tokens", "rows"]
NO_UNIT: Unit = ""


@dataclass(frozen=True)
class Label:
    """A label and its bound. values: all it can be; none: numbers or names, `at_most` different ones."""

    name: str
    values: tuple[str, ...] = ()
    at_most: int = 0

    @property
    def bound(self) -> int:
        return len(self.values) or self.at_most


@dataclass(frozen=True)
class Alias:
    """The same numbers under a name that public dashboards know.

    rename: (ours, theirs) of labels. where: only points with these label values. drop: labels that are summed over.
    """

    name: str
    rename: tuple[tuple[str, str], ...] = ()
    where: tuple[tuple[str, str], ...] = ()
    drop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """One metric. buckets: upper bounds of a histogram, ascending, the last (+Inf) left out."""

    name: str
    kind: Kind
    unit: Unit
    help: str
    owner: Owner
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()
    aliases: tuple[Alias, ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    @property
    def max_label_sets(self) -> int:
        """More are never kept."""
        return math.prod(label.bound for label in self.labels)


class Declarations:
    """Makes the specs of one owner."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def counter(
        self, name: str, text: str, *labels: Label, unit: Unit = NO_UNIT, aliases: tuple[Alias, ...] = ()
    ) -> MetricSpec:
        return MetricSpec(
            name=name, kind=Kind.COUNTER, unit=unit, help=text, owner=self._owner, labels=labels, aliases=aliases
        )

    def gauge(
        self, name: str, text: str, *labels: Label, unit: Unit = NO_UNIT, aliases: tuple[Alias, ...] = ()
    ) -> MetricSpec:
        return MetricSpec(
            name=name, kind=Kind.GAUGE, unit=unit, help=text, owner=self._owner, labels=labels, aliases=aliases
        )

    def histogram(
        self, name: str, text: str, *, unit: Unit, buckets: tuple[float, ...], aliases: tuple[Alias, ...] = ()
    ) -> MetricSpec:
        """Without labels: each label set would cost a series for every bucket."""
        return MetricSpec(
            name=name, kind=Kind.HISTOGRAM, unit=unit, help=text, owner=self._owner, buckets=buckets, aliases=aliases
        )

    def matrix(self, name: str, text: str, *labels: Label, unit: Unit = NO_UNIT) -> MetricSpec:
        return MetricSpec(name=name, kind=Kind.MATRIX, unit=unit, help=text, owner=self._owner, labels=labels)
