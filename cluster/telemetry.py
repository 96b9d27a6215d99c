"""The section of ClusterConfig for what the cluster tells of itself: metrics, traces, logs. Frozen values only."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cluster.sections import AbsolutePath, Section
from ops.telemetry.exporter import ExporterConfig
from ops.telemetry.tracing import TracingConfig


class MetricsSection(ExporterConfig):
    """Where each process can be scraped by Prometheus."""

    enabled: bool = Field(True, description="whether processes listen for scrapes at all")
    expert_matrix: bool = Field(False, description="load of every layer and expert at /metrics/experts: 12,096 series")


class TracingSection(TracingConfig):
    """Spans of requests, sent to an OpenTelemetry collector."""

    headers_file: AbsolutePath | None = Field(
        None, description="headers for the collector, one `name: value` a line, such as a token"
    )


class LogSection(Section):
    """What log lines look like."""

    format: Literal["text", "json"] = Field("text", description="json: one object a line, with request and trace ids")


class TelemetryConfig(Section):
    """What the cluster tells of itself."""

    metrics: MetricsSection = Field(default_factory=MetricsSection)
    tracing: TracingSection = Field(default_factory=TracingSection)
    logs: LogSection = Field(default_factory=LogSection)
