"""Families as plain values for JSON and for messages between processes, and the registry as a page needs it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ops.telemetry.cells import HistogramValue
from ops.telemetry.metrics import METRICS
from ops.telemetry.recording import Family

# By metric name: [label values in the declared order, number], or {"counts", "total"} in place of the number.
PlainMetrics = Mapping[str, list[list[Any]]]


def plain_metrics(families: Iterable[Family]) -> PlainMetrics:
    """Totals since birth, as they are now."""
    return {
        family.spec.name: [[list(point.labels), _plain(point.value)] for point in family.points] for family in families
    }


def plain_registry() -> dict[str, dict[str, Any]]:
    """What every metric is, by name."""
    return {
        spec.name: {
            "kind": str(spec.kind),
            "unit": spec.unit,
            "help": spec.help,
            "owner": str(spec.owner),
            "labels": list(spec.label_names),
            "buckets": list(spec.buckets),
        }
        for spec in METRICS.values()
    }


def _plain(value: float | HistogramValue) -> float | dict[str, Any]:
    if isinstance(value, HistogramValue):
        return {"counts": list(value.counts), "total": value.total}
    return value
