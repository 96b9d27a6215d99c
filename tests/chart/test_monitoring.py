"""Monitors, alerts and dashboards: off by default, and made from files when there are some."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.chart.helm import CHART, Helm, Rendered
from tests.chart.test_profiles import NEWEST, assert_valid

KINDS = {"PodMonitor", "ServiceMonitor", "PrometheusRule"}
ON = {"monitoring": {"scrape": "PodMonitor", "alerts": True, "dashboards": True, "labels": {"release": "p"}}}


@pytest.fixture
def filled(helm: Helm, tmp_path: Path) -> Helm:
    """The chart with one file of alerts and one dashboard, which holds what Helm would take for a template."""
    chart = tmp_path / "step35-cluster"
    shutil.copytree(CHART, chart)
    group = {
        "name": "step35",
        "rules": [{"alert": "Slow", "expr": "vector(1) > 0", "annotations": {"summary": "{{ $value }}"}}],
    }
    (chart / "files" / "alerts" / "some.yaml").write_text(yaml.safe_dump([group]))
    (chart / "files" / "dashboards" / "experts.json").write_text(json.dumps({"title": "{{layer}}", "panels": []}))
    return Helm(helm.binary, chart)


def test_nothing_is_monitored_by_default(demo: Rendered) -> None:
    """Its kinds are unknown to a cluster without the Prometheus operator."""
    assert not KINDS & {made["kind"] for made in demo.objects}


def test_a_pod_monitor_finds_every_pod_and_port(gpus: Rendered) -> None:
    """By labels that the pods have and by names that their ports have."""
    spec = gpus.one("PodMonitor")["spec"]
    names = {port["name"] for tier in ("head", "experts") for port in gpus.container(tier)["ports"]}
    assert {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]} <= names
    for tier in ("head", "attention", "experts"):
        assert spec["selector"]["matchLabels"].items() <= gpus.template(tier)["metadata"]["labels"].items()


def test_a_service_monitor_brings_the_service_that_it_needs(helm: Helm) -> None:
    """Headless, and with the pods that are not ready."""
    made = helm.template({"monitoring": {"scrape": "ServiceMonitor", "labels": {"release": "p"}}})
    assert_valid(made, NEWEST)
    service, monitor = made.one("Service", "-metrics"), made.one("ServiceMonitor")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ports = {port["name"] for port in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} == ports
    assert monitor["metadata"]["labels"]["release"] == "p"


def test_alerts_and_dashboards_come_from_files_untouched(filled: Helm) -> None:
    """What looks like a template in them stays as it is."""
    made = filled.template(ON)
    assert_valid(made, NEWEST)
    rule = made.one("PrometheusRule")
    assert rule["metadata"]["labels"]["release"] == "p"
    assert rule["spec"]["groups"][0]["rules"][0]["annotations"]["summary"] == "{{ $value }}"
    board = made.one("ConfigMap", "-experts")
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert board["metadata"]["annotations"]["grafana_folder"] == "step35"
    assert json.loads(board["data"]["experts.json"])["title"] == "{{layer}}"


def test_without_files_there_is_no_object(helm: Helm) -> None:
    """An empty rule would be refused, an empty ConfigMap would mislead."""
    made = helm.template(ON)
    files = [path for path in (CHART / "files").rglob("*") if path.suffix in (".json", ".yaml")]
    boards = [m for m in made.all_of("ConfigMap") if "grafana_dashboard" in m["metadata"]["labels"]]
    assert len(boards) == len([path for path in files if path.suffix == ".json"])
    assert len(made.all_of("PrometheusRule")) == any(path.suffix == ".yaml" for path in files)
