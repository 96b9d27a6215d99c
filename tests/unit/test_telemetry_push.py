"""What leaves through OpenTelemetry is what its own SDK would have sent for the same measurements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    InMemoryMetricReader,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
)

from ops.telemetry.exposition import ProcessLabels
from ops.telemetry.metrics import METRICS
from ops.telemetry.opentelemetry_push import opentelemetry_provider
from ops.telemetry.recording import RecordingMeter
from ops.telemetry.spec import Owner

PROCESS = ProcessLabels(Owner.GATEWAY, "member-1")
FINISHED, OPEN, TTFT = "step35_requests_finished_total", "step35_requests_open", "step35_time_to_first_token_seconds"


class Kept(MetricExporter):
    """Keeps what it is asked to send."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[MetricsData] = []
        self.is_shut_down = False

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        self.sent.append(metrics_data)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self.is_shut_down = True


def test_sends_what_the_sdk_would_send() -> None:
    """Kinds, temporality, attributes and buckets; the extremes of a histogram alone are not kept."""
    values = np.random.default_rng(5).exponential(0.3, 200).tolist()
    ours, theirs = _sent_by_ours(values), _sent_by_the_sdk(values)
    assert set(theirs) <= set(ours)
    for name, metric in theirs.items():
        assert (ours[name].description, ours[name].unit) == (metric.description, metric.unit)
        assert type(ours[name].data) is type(metric.data)
        assert _facts(ours[name]) == _facts(metric)


def test_resource_names_the_process_and_shutdown_sends_a_last_time() -> None:
    """What was recorded after the last interval is not lost, and the exporter is shut down."""
    meter, exporter = RecordingMeter(Owner.GATEWAY), Kept()
    provider = opentelemetry_provider(meter, PROCESS, exporter, interval_s=3600)
    meter.counter(FINISHED, reason="stop").add()
    provider.shutdown()
    assert exporter.is_shut_down
    [resource_metrics] = exporter.sent[-1].resource_metrics
    assert dict(resource_metrics.resource.attributes) == {"role": "gateway", "member": "member-1"}
    assert FINISHED in _metrics(exporter.sent[-1])


def _sent_by_ours(values: list[float]) -> dict[str, Metric]:
    meter, exporter = RecordingMeter(Owner.GATEWAY), Kept()
    provider = opentelemetry_provider(meter, PROCESS, exporter, interval_s=3600)
    for reason, amount in (("stop", 2), ("length", 3), ("stop", 4)):
        meter.counter(FINISHED, reason=reason).add(amount)
    meter.gauge(OPEN).set(7)
    meter.histogram(TTFT).record_many(values)
    provider.force_flush()
    provider.shutdown()
    return _metrics(exporter.sent[0])


def _sent_by_the_sdk(values: list[float]) -> dict[str, Metric]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    meter = provider.get_meter("theirs")
    counter = meter.create_counter(FINISHED, "1", METRICS[FINISHED].help)
    for reason, amount in (("stop", 2), ("length", 3), ("stop", 4)):
        counter.add(amount, {"reason": reason})
    meter.create_gauge(OPEN, "1", METRICS[OPEN].help).set(7)
    bounds = METRICS[TTFT].buckets
    histogram = meter.create_histogram(TTFT, "s", METRICS[TTFT].help, explicit_bucket_boundaries_advisory=bounds)
    for value in values:
        histogram.record(value)
    data = reader.get_metrics_data()
    provider.shutdown()
    assert data is not None
    return _metrics(data)


def _metrics(data: MetricsData) -> dict[str, Metric]:
    scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
    return {metric.name: metric for scope in scopes for metric in scope.metrics}


def _facts(metric: Metric) -> list[Any]:
    """Everything of a metric but times and extremes."""
    about = [getattr(metric.data, name, None) for name in ("aggregation_temporality", "is_monotonic")]
    return [*about, *(_point_facts(point) for point in metric.data.data_points)]


def _point_facts(point: Any) -> list[Any]:
    assert point.start_time_unix_nano is None or point.start_time_unix_nano <= point.time_unix_nano
    exact = [getattr(point, name, None) for name in ("value", "count")]
    series = [tuple(getattr(point, name, ())) for name in ("bucket_counts", "explicit_bounds")]
    return [dict(point.attributes), *exact, *series, pytest.approx(getattr(point, "sum", 0.0))]
