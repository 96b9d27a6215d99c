"""Monitors, alerts and dashboards: off by default; every process is found, and files are installed as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import ClusterConfig
from ops.alerts.rule_files import groups
from ops.dashboards.boards import files as dashboard_files
from tests.chart.helm import CHART, ROOT, Helm, Rendered
from tests.chart.test_profiles import NEWEST, assert_valid

KINDS = {"PodMonitor", "ServiceMonitor", "PrometheusRule"}
ON = {"monitoring": {"scrape": "PodMonitor", "alerts": True, "dashboards": True, "labels": {"release": "p"}}}
TIERS = ("head", "attention", "experts")
OURS, RAYS = "cluster-metrics", "ray-metrics"
RAYS_PORTS = {"metrics", "as-metrics", "dash-metrics"}


@pytest.fixture
def filled(helm: Helm, tmp_path: Path) -> Helm:
    """The chart with one file of alerts and one dashboard more, which hold what Helm would take for a template."""
    chart = tmp_path / "step35-cluster"
    shutil.copytree(CHART, chart)
    group = {
        "name": "step35",
        "rules": [{"alert": "Slow", "expr": "vector(1) > 0", "annotations": {"summary": "{{ $value }}"}}],
    }
    (chart / "files" / "alerts" / "some.yaml").write_text(yaml.safe_dump([group]))
    (chart / "files" / "dashboards" / "more.json").write_text(json.dumps({"title": "{{layer}}", "panels": []}))
    return Helm(helm.binary, chart)


def declared(rendered: Rendered, tier: str) -> dict[str, int]:
    """Ports of a tier's pods by name."""
    return {port["name"]: port["containerPort"] for port in rendered.container(tier)["ports"]}


def test_nothing_is_monitored_by_default(demo: Rendered) -> None:
    """Its kinds are unknown to a cluster without the Prometheus operator."""
    assert not KINDS & {made["kind"] for made in demo.objects}


def test_pod_monitors_find_every_pod(gpus: Rendered) -> None:
    """By labels that the pods of all tiers have."""
    for monitor in gpus.all_of("PodMonitor"):
        selector = monitor["spec"]["selector"]
        (expression,) = selector["matchExpressions"]
        for tier in TIERS:
            labels = gpus.template(tier)["metadata"]["labels"]
            assert selector["matchLabels"].items() <= labels.items()
            assert (expression["operator"], labels[expression["key"]] in expression["values"]) == ("In", True)


def test_every_port_that_a_process_may_take_is_scraped_once(gpus: Rendered) -> None:
    """All that the exporters of an attention pod try, from the first on; other pods have the first of them."""
    endpoints = gpus.one("PodMonitor", OURS)["spec"]["podMetricsEndpoints"]
    names = [endpoint["port"] for endpoint in endpoints]
    metrics = ClusterConfig.model_validate(gpus.config).telemetry.metrics
    of_attention = declared(gpus, "attention")
    assert [of_attention[name] for name in names] == list(range(metrics.port, metrics.port + metrics.num_ports))
    assert all("path" not in endpoint for endpoint in endpoints), "/metrics is Prometheus's own choice"
    for tier in TIERS:
        ours = {name: port for name, port in declared(gpus, tier).items() if name.startswith("telemetry-")}
        assert ours.items() <= of_attention.items()
        assert metrics.port in ours.values()
        assert ours.keys() <= set(names)


def test_rays_metrics_are_a_job_of_their_own(gpus: Rendered, helm: Helm) -> None:
    """Alerts take a job for one cluster: Ray's ports answer while every process of ours is down."""
    monitors = {made["metadata"]["name"]: made["spec"] for made in gpus.all_of("PodMonitor")}
    assert monitors.keys() == {"demo-step35-cluster-metrics", "demo-step35-cluster-ray-metrics"}
    assert all("jobLabel" not in spec for spec in monitors.values()), "the job is the monitor"
    rays = {endpoint["port"] for endpoint in gpus.one("PodMonitor", RAYS)["spec"]["podMetricsEndpoints"]}
    assert rays == RAYS_PORTS == RAYS_PORTS & declared(gpus, "head").keys()
    silent = helm.template({"monitoring": {"scrape": "PodMonitor", "telemetry": {"metrics": {"enabled": False}}}})
    assert [made["metadata"]["name"] for made in silent.all_of("PodMonitor")] == ["demo-step35-cluster-ray-metrics"]


def test_the_load_of_experts_is_scraped_from_the_coordinator_alone(everything: Rendered, gpus: Rendered) -> None:
    """Where the configuration serves it; seldom, and as an instance of its own, or two targets would be one."""
    assert ClusterConfig.model_validate(everything.config).telemetry.metrics.expert_matrix
    endpoints = everything.one("PodMonitor", OURS)["spec"]["podMetricsEndpoints"]
    matrix = [endpoint for endpoint in endpoints if "path" in endpoint]
    of_head = {name for name in declared(everything, "head") if name.startswith("telemetry-")}
    assert {endpoint["port"] for endpoint in matrix} == of_head
    for endpoint in matrix:
        assert (endpoint["path"], endpoint["interval"]) == ("/metrics/experts", "60s")
        keep, instance = endpoint["relabelings"]
        assert (keep["action"], keep["regex"]) == ("keep", "head")
        label = keep["sourceLabels"][0].removeprefix("__meta_kubernetes_pod_label_")
        assert label == "app.kubernetes.io/component".translate(str.maketrans("./", "__"))
        assert instance == {
            "sourceLabels": ["__address__"],
            "targetLabel": "instance",
            "replacement": "$1/metrics/experts",
        }
    assert not [found for found in gpus.one("PodMonitor", OURS)["spec"]["podMetricsEndpoints"] if "path" in found]


@pytest.mark.parametrize("matrix", [False, True])
def test_service_monitors_bring_the_services_that_they_need(helm: Helm, matrix: bool) -> None:
    """Headless, with the pods that are not ready, for the same endpoints as pod monitors."""
    telemetry = {"metrics": {"expert_matrix": matrix}}
    monitoring = {"labels": {"release": "p"}, "intervalSeconds": 15, "telemetry": telemetry}
    made = helm.template({"monitoring": {**monitoring, "scrape": "ServiceMonitor"}})
    by_pod = helm.template({"monitoring": {**monitoring, "scrape": "PodMonitor"}})
    assert_valid(made, NEWEST)
    assert_valid(by_pod, NEWEST)
    for job in (OURS, RAYS):
        service, monitor = made.one("Service", job), made.one("ServiceMonitor", job)
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["publishNotReadyAddresses"] is True
        selected = monitor["spec"]["selector"]["matchLabels"].items()
        assert [s for s in made.all_of("Service") if selected <= s["metadata"]["labels"].items()] == [service]
        of_pods = declared(made, "head") | declared(made, "attention")
        ports = {port["name"]: (port["port"], port["targetPort"]) for port in service["spec"]["ports"]}
        assert ports == {name: (of_pods[name], name) for name in ports}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} == ports.keys()
        assert monitor["spec"]["endpoints"] == by_pod.one("PodMonitor", job)["spec"]["podMetricsEndpoints"]
        assert {e["interval"] for e in monitor["spec"]["endpoints"] if "path" not in e} == {"15s"}
        assert monitor["metadata"]["labels"]["release"] == "p"


def test_alerts_and_dashboards_come_from_files_untouched(filled: Helm) -> None:
    """What looks like a template in them stays as it is, and a rule without a runbook gets no link."""
    made = filled.template({"monitoring": {**ON["monitoring"], "runbookBaseUrl": "https://wiki.example.com"}})
    assert_valid(made, NEWEST)
    rule = made.one("PrometheusRule")
    assert rule["metadata"]["labels"]["release"] == "p"
    (added,) = [group for group in rule["spec"]["groups"] if group["name"] == "step35"]
    assert added["rules"][0]["annotations"] == {"summary": "{{ $value }}"}
    board = made.one("ConfigMap", "-more")
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert board["metadata"]["annotations"]["grafana_folder"] == "step35"
    assert json.loads(board["data"]["more.json"])["title"] == "{{layer}}"


def test_the_alerts_are_those_of_ops_alerts(helm: Helm) -> None:
    """All of them, to the letter; with a place for runbooks each links the file that is in the repository."""
    assert helm.template(ON).one("PrometheusRule")["spec"]["groups"] == groups()
    for base in ("https://wiki.example.com/step35", "https://wiki.example.com/step35/"):
        linked = helm.template({"monitoring": {**ON["monitoring"], "runbookBaseUrl": base}})
        rules = [rule for group in linked.one("PrometheusRule")["spec"]["groups"] for rule in group["rules"]]
        links = [rule["annotations"].pop("runbook_url") for rule in rules]
        assert rules == [rule for group in groups() for rule in group["rules"]]
        paths = [rule["annotations"]["runbook"] for rule in rules]
        assert links == [f"https://wiki.example.com/step35/{Path(path).name}" for path in paths]
        assert all((ROOT / path).is_file() for path in paths)


def test_the_dashboards_are_those_of_ops_dashboards(helm: Helm) -> None:
    """One ConfigMap for each, to the letter."""
    boards: dict[str, Any] = {}
    for made in helm.template(ON).all_of("ConfigMap"):
        if "grafana_dashboard" in made["metadata"]["labels"]:
            boards |= made["data"]
    assert boards == {path.name: text for path, text in dashboard_files().items() if CHART in path.parents}
    assert len(boards) == 5


def test_without_files_there_is_no_object(filled: Helm) -> None:
    """An empty rule would be refused, an empty ConfigMap would mislead."""
    for folder in ("alerts", "dashboards"):
        shutil.rmtree(filled.chart / "files" / folder)
    made = filled.template(ON)
    assert not made.all_of("PrometheusRule")
    assert not [m for m in made.all_of("ConfigMap") if "grafana_dashboard" in m["metadata"]["labels"]]
