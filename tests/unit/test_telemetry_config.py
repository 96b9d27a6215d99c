"""The telemetry section: off by default, absolute paths, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config import ClusterConfig, load_config
from cluster.errors import ConfigurationError
from ops.telemetry.exporter import ExporterConfig
from ops.telemetry.exposition import ProcessLabels
from ops.telemetry.spec import Owner
from ops.telemetry.tracing import NO_TRACING, TracingConfig, open_tracing

CHECKPOINT = {"checkpoint": "/models/step"}


def config_of(**telemetry: Any) -> ClusterConfig:
    return ClusterConfig.model_validate({**CHECKPOINT, "telemetry": telemetry})


def test_defaults() -> None:
    """Nothing leaves the machine, and log lines are as they were."""
    telemetry = ClusterConfig.model_validate(CHECKPOINT).telemetry
    assert telemetry.tracing.endpoint is None
    assert not telemetry.tracing.capture_content
    assert telemetry.logs.format == "text"
    assert telemetry.metrics.host == "127.0.0.1"
    assert not telemetry.metrics.expert_matrix
    assert open_tracing(telemetry.tracing, ProcessLabels(Owner.GATEWAY, "g")) is NO_TRACING


def test_sections_are_what_the_parts_take() -> None:
    """An exporter and a tracer are opened with their section as it is."""
    telemetry = config_of(metrics={"port": 0}, tracing={"headers_file": "x/y"}).telemetry
    assert isinstance(telemetry.metrics, ExporterConfig)
    assert isinstance(telemetry.tracing, TracingConfig)
    assert telemetry.tracing.headers_file == Path("x/y").absolute()


def test_round_trip() -> None:
    """Replicas get it as plain values."""
    config = config_of(tracing={"endpoint": "http://c:4318", "sample_ratio": 0.5}, logs={"format": "json"})
    assert ClusterConfig.model_validate(config.to_dict()) == config


def test_from_the_environment() -> None:
    """As every other field."""
    environ = {
        "STEP35__CHECKPOINT": "/m",
        "STEP35__TELEMETRY__TRACING__ENDPOINT": "http://c:4318",
        "STEP35__TELEMETRY__LOGS__FORMAT": "json",
    }
    telemetry = load_config(None, environ=environ).telemetry
    assert (telemetry.tracing.endpoint, telemetry.logs.format) == ("http://c:4318", "json")


@pytest.mark.parametrize(
    ("telemetry", "named"),
    [
        ({"tracing": {"sample_ratio": 1.5}}, "telemetry.tracing.sample_ratio"),
        ({"tracing": {"endpoint": "http://user:pw@c"}}, "telemetry.tracing.endpoint"),
        ({"tracing": {"max_queue_spans": 1}}, "telemetry.tracing.max_queue_spans"),
        ({"tracing": {"sampleratio": 1}}, "did you mean sample_ratio"),
        ({"logs": {"format": "xml"}}, "telemetry.logs.format"),
        ({"metrics": {"port": -1}}, "telemetry.metrics.port"),
    ],
)
def test_what_is_refused(telemetry: dict[str, Any], named: str) -> None:
    """The message names the field."""
    with pytest.raises(ConfigurationError, match=named):
        load_config(None, overrides={**CHECKPOINT, "telemetry": telemetry}, environ={})
