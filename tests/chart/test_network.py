"""NetworkPolicy and rights, against what the processes open and call."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from cluster.config import ClusterConfig, PodEnvironment, pod_environment
from tests.chart.helm import ROOT, Helm, Rendered
from tests.fakes.kubernetes_api import EVERYTHING

# Ray's own, of pydantic and others, when it is imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

OPERATOR, MONITORING = "kuberay-system", "monitoring"


def ports_from(policy: dict[str, Any], namespace: str) -> set[int]:
    """Ports that a policy opens to a namespace."""
    opened: set[int] = set()
    for rule in policy["spec"]["ingress"]:
        peers = [peer.get("namespaceSelector", {}).get("matchLabels", {}) for peer in rule["from"]]
        if {"kubernetes.io/metadata.name": namespace} in peers:
            opened |= {port["port"] for port in rule["ports"]}
    return opened


def test_only_the_api_is_open_to_clients(demo: Rendered) -> None:
    """Of all that the processes listen on: Ray's ports, the operator's route and the gateway's."""
    from ray._private import ray_constants

    config = ClusterConfig.model_validate(demo.config)
    policy = demo.one("NetworkPolicy", "step35-cluster")
    clients = [rule for rule in policy["spec"]["ingress"] if {"podSelector": {}} in rule["from"]]
    opened = {port["port"] for rule in clients for port in rule["ports"]}
    assert opened == {config.gateway.port}
    never = {ray_constants.DEFAULT_PORT, ray_constants.DEFAULT_DASHBOARD_PORT, 10001, config.admin.port}
    assert not opened & never
    assert config.admin.host == "127.0.0.1"


def test_metrics_are_open_to_monitoring_alone(demo: Rendered) -> None:
    """The ports where Ray and its autoscaler expose them, and no other."""
    from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
    from ray.dashboard.consts import DASHBOARD_METRIC_PORT

    policy = demo.one("NetworkPolicy", "step35-cluster")
    wanted = {8080, AUTOSCALER_METRIC_PORT, DASHBOARD_METRIC_PORT}
    assert ports_from(policy, MONITORING) == wanted
    named = {port["containerPort"] for port in demo.container("head")["ports"] if port["name"].endswith("metrics")}
    assert named == wanted


def test_the_operator_reaches_the_head(demo: Rendered) -> None:
    """Serve's configuration goes to the dashboard's port, health to the proxy's; workers need neither."""
    from ray._private import ray_constants

    head, everyone = demo.one("NetworkPolicy", "-head"), demo.one("NetworkPolicy", "step35-cluster")
    assert ports_from(head, OPERATOR) == {ray_constants.DEFAULT_DASHBOARD_PORT, demo.config["gateway"]["port"]}
    assert ports_from(everyone, OPERATOR) == set()
    assert head["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "head"


def test_pods_of_the_release_reach_each_other_on_every_port(demo: Rendered) -> None:
    """Both ways: Ray's workers and the collectives choose their ports."""
    spec = demo.one("NetworkPolicy", "step35-cluster")["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    inner = [rule for rule in spec["ingress"] if "ports" not in rule]
    assert [rule["from"] for rule in inner] == [rule["to"] for rule in spec["egress"] if "ports" not in rule]
    (peers,) = (rule["from"] for rule in inner)
    (peer,) = peers
    assert peer["podSelector"] == spec["podSelector"]
    assert "namespaceSelector" not in peer
    for tier in ("head", "attention", "experts"):
        labels = demo.template(tier)["metadata"]["labels"]
        assert spec["podSelector"]["matchLabels"].items() <= labels.items()
        (expression,) = spec["podSelector"]["matchExpressions"]
        assert labels[expression["key"]] in expression["values"]


def test_nothing_leaves_but_what_is_called(demo: Rendered, gpus: Rendered, everything: Rendered) -> None:
    """Names always; the Kubernetes API from the head when something calls it; the hub when weights come from it."""

    def outward(rendered: Rendered, name: str) -> set[int]:
        rules = rendered.one("NetworkPolicy", name)["spec"]["egress"]
        return {port["port"] for rule in rules for port in rule.get("ports", [])}

    assert outward(demo, "step35-cluster") == {53}
    assert outward(demo, "-head") == set()
    assert outward(gpus, "step35-cluster") == {53}
    assert outward(gpus, "-head") == {443, 6443}
    assert outward(everything, "step35-cluster") == {53, 443, 4317}


def test_the_policies_can_be_left_to_others(helm: Helm) -> None:
    """And NOTES say so."""
    assert not helm.template({"networkPolicy": {"enabled": False}}).all_of("NetworkPolicy")
    assert "networkPolicy.enabled=false" in helm.template({"networkPolicy": {"enabled": False}}, notes=True).text


def test_no_pod_has_a_token_that_nothing_on_it_uses(demo: Rendered, gpus: Rendered, everything: Rendered) -> None:
    """The autoscaler and the coordinator's watch use the head's; workers have none, whatever their account says."""
    for rendered, expected in ((demo, False), (gpus, True), (everything, True)):
        assert rendered.template("head")["spec"]["automountServiceAccountToken"] is expected
        for tier in ("attention", "experts"):
            assert rendered.template(tier)["spec"]["automountServiceAccountToken"] is False
        assert all(made["automountServiceAccountToken"] is False for made in rendered.all_of("ServiceAccount"))
    accounts = {made["metadata"]["name"] for made in demo.all_of("ServiceAccount")}
    assert accounts == {demo.template(tier)["spec"]["serviceAccountName"] for tier in ("head", "attention", "experts")}


def test_the_chart_grants_nothing_by_itself(demo: Rendered, gpus: Rendered) -> None:
    """KubeRay grants the autoscaler what it needs."""
    for rendered in (demo, gpus):
        kinds = {made["kind"] for made in rendered.objects}
        assert not kinds & {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}


def test_the_watch_may_read_and_write_events_and_no_more(everything: Rendered) -> None:
    """Exactly what the session with Kubernetes asks for, as tests/unit/test_evacuation.py shows: no secret, no
    wildcard, no change of pods or nodes; bound to the head's account alone."""
    rules = [rule for kind in ("Role", "ClusterRole") for rule in everything.one(kind)["rules"]]
    granted = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
    assert granted == {(kind, verb) for verb, kind in EVERYTHING}
    (named,) = (rule["resourceNames"] for rule in rules if rule["resources"] == ["rayservices"])
    assert named == [everything.one("RayService")["metadata"]["name"]]
    subjects = [s for kind in ("RoleBinding", "ClusterRoleBinding") for s in everything.one(kind)["subjects"]]
    assert {subject["name"] for subject in subjects} == {everything.template("head")["spec"]["serviceAccountName"]}
    assert {subject["namespace"] for subject in subjects} == {"models"}


def test_the_watch_is_granted_only_when_there_is_one(demo: Rendered, gpus: Rendered, everything: Rendered) -> None:
    """Off by default, and then the coordinator does not look, whatever token the autoscaler's pod has. One file of ours
    imports the client."""
    sources = [path for package in ("cluster", "actors", "routing", "ops") for path in (ROOT / package).rglob("*.py")]
    callers = [path.relative_to(ROOT).as_posix() for path in sources if "kubernetes" in _imports(path.read_text())]
    assert callers == ["cluster/kube/api.py"]
    for rendered in (demo, gpus):
        assert not rendered.all_of("Role")
        assert ClusterConfig.model_validate(rendered.config).kubernetes.enabled == "off"
    watching = ClusterConfig.model_validate(everything.config).kubernetes
    assert (watching.enabled, watching.nodes) == ("auto", True)


def test_every_process_knows_its_pod(everything: Rendered) -> None:
    """By the names that cluster/config.py reads: what the downward API fills in, and the RayService."""
    for tier in ("head", "attention", "experts"):
        given = {entry["name"]: entry for entry in everything.container(tier)["env"]}
        fields = {
            name: entry["valueFrom"]["fieldRef"]["fieldPath"]
            for name, entry in given.items()
            if "fieldRef" in entry.get("valueFrom", {})
        }
        known = pod_environment(
            fields | {name: entry.get("value", "") for name, entry in given.items() if name not in fields}
        )
        service = everything.one("RayService")["metadata"]["name"]
        assert known == PodEnvironment(
            "metadata.name", "spec.nodeName", "metadata.namespace", "metadata.labels['ray.io/cluster']", service
        )


def _imports(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found
