"""What a meter holds, as OpenTelemetry's data model: for any exporter of the SDK, such as OTLP.

The SDK's instruments are too slow for a token's path, so its measuring half is replaced and its sending half is kept:
`opentelemetry_provider` starts the SDK's periodic reader, which owns the thread, the interval and the time-outs, around
an exporter that sends our numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    DataT,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    PeriodicExportingMetricReader,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from ops.telemetry.cells import HistogramValue
from ops.telemetry.exposition import ProcessLabels
from ops.telemetry.recording import Family, Point, RecordingMeter
from ops.telemetry.spec import Kind

SCOPE = "step35"
UNITS = {"": "1", "seconds": "s", "bytes": "By", "ratio": "1", "tokens": "{token}", "rows": "{row}"}
_CUMULATIVE = AggregationTemporality.CUMULATIVE


def opentelemetry_provider(
    meter: RecordingMeter, process: ProcessLabels, exporter: MetricExporter, interval_s: float = 15.0
) -> MeterProvider:
    """Sends what `meter` holds every `interval_s`, and a last time at the provider's `shutdown`, owed by the caller."""
    replacing = _Replacing(exporter, meter, process)
    reader = PeriodicExportingMetricReader(replacing, export_interval_millis=interval_s * 1000)
    provider = MeterProvider([reader], resource=Resource(dict(process.own)), shutdown_on_exit=False)
    # The reader exports only if the SDK has a measurement of its own.
    provider.get_meter(SCOPE).create_observable_gauge("alive", callbacks=[lambda _: [Observation(1)]])
    return provider


def metrics_data(families: Iterable[Family], process: ProcessLabels, started_ns: int, now_ns: int) -> MetricsData:
    """started_ns, now_ns: since the epoch; totals are those between the two."""
    metrics = [
        Metric(family.spec.name, family.spec.help, UNITS[family.spec.unit], _data(family, started_ns, now_ns))
        for family in families
    ]
    scope = ScopeMetrics(InstrumentationScope(SCOPE), metrics, "")
    return MetricsData([ResourceMetrics(Resource(dict(process.own)), [scope], "")])


class _Replacing(MetricExporter):
    """Asked to send what the SDK measured, sends what the meter holds."""

    def __init__(
        self,
        inner: MetricExporter,
        meter: RecordingMeter,
        process: ProcessLabels,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__()
        self._inner = inner
        self._meter = meter
        self._process = process
        self._clock_ns = clock_ns
        self._started_ns = clock_ns()

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        return self._inner.export(self._ours(), timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._inner.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._inner.shutdown(timeout_millis, **kwargs)

    def _ours(self) -> MetricsData:
        return metrics_data(self._meter.families(), self._process, self._started_ns, self._clock_ns())


def _data(family: Family, started_ns: int, now_ns: int) -> DataT:
    spec = family.spec
    attributes = [dict(zip(spec.label_names, point.labels, strict=True)) for point in family.points]
    if spec.kind is Kind.HISTOGRAM:
        points = [
            _histogram_point(each, point, spec.buckets, (started_ns, now_ns))
            for each, point in zip(attributes, family.points, strict=True)
        ]
        return Histogram(points, _CUMULATIVE)
    numbers = [
        NumberDataPoint(each, started_ns, now_ns, _number(point))
        for each, point in zip(attributes, family.points, strict=True)
    ]
    return Sum(numbers, _CUMULATIVE, is_monotonic=True) if spec.kind is Kind.COUNTER else Gauge(numbers)


def _number(point: Point) -> float:
    assert not isinstance(point.value, HistogramValue), "a histogram's value in a family of numbers"
    return point.value


def _histogram_point(
    attributes: dict[str, str], point: Point, bounds: tuple[float, ...], between_ns: tuple[int, int]
) -> HistogramDataPoint:
    value = point.value
    assert isinstance(value, HistogramValue), "a number in a family of histograms"
    return HistogramDataPoint(
        attributes=attributes,
        start_time_unix_nano=between_ns[0],
        time_unix_nano=between_ns[1],
        count=sum(value.counts),
        sum=value.total,
        bucket_counts=value.counts,
        explicit_bounds=bounds,
        min=math.inf,  # the extremes are not kept; the SDK says so like this
        max=-math.inf,
    )
