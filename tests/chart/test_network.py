"""NetworkPolicy and rights, against what the processes open and call."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from cluster.config import ClusterConfig, PodEnvironment, pod_environment
from ops.telemetry.errors import NoFreePort
from ops.telemetry.exporter import Exporter
from ops.telemetry.exposition import ProcessLabels
from ops.telemetry.recording import RecordingMeter
from ops.telemetry.spec import Owner
from tests.chart.helm import ROOT, Helm, Rendered
from tests.chart.ports import free_range
from tests.chart.test_profiles import NEWEST, assert_valid
from tests.fakes.kubernetes_api import EVERYTHING

# Ray's own, of pydantic and others, when it is imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

OPERATOR, MONITORING = "kuberay-system", "monitoring"
TIERS = ("head", "attention", "experts")


def ports_from(policy: dict[str, Any], namespace: str) -> set[int]:
    """Ports that a policy opens to a namespace."""
    opened: set[int] = set()
    for rule in policy["spec"]["ingress"]:
        peers = [peer.get("namespaceSelector", {}).get("matchLabels", {}) for peer in rule["from"]]
        if {"kubernetes.io/metadata.name": namespace} in peers:
            opened |= open_to(rule)
    return opened


def open_to(rule: dict[str, Any]) -> set[int]:
    """Ports of one rule."""
    return set().union(*(range(port["port"], port.get("endPort", port["port"]) + 1) for port in rule["ports"]))


def telemetry_ports(config: ClusterConfig) -> set[int]:
    """All that an exporter of ours may take."""
    metrics = config.telemetry.metrics
    return set(range(metrics.port, metrics.port + metrics.num_ports))


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


def test_metrics_are_open_to_monitoring_alone(demo: Rendered, helm: Helm) -> None:
    """The ports where Ray and its autoscaler expose them and those that processes of ours may take, and no other."""
    from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
    from ray.dashboard.consts import DASHBOARD_METRIC_PORT

    policy = demo.one("NetworkPolicy", "step35-cluster")
    rays = {8080, AUTOSCALER_METRIC_PORT, DASHBOARD_METRIC_PORT}
    ours = telemetry_ports(ClusterConfig.model_validate(demo.config))
    assert ports_from(policy, MONITORING) == rays | ours
    clients = [rule for rule in policy["spec"]["ingress"] if {"podSelector": {}} in rule["from"]]
    assert not set().union(*map(open_to, clients)) & (rays | ours)
    named = {port["containerPort"] for port in demo.container("head")["ports"] if port["name"].endswith("metrics")}
    assert named == rays
    silent = helm.template({"monitoring": {"telemetry": {"metrics": {"enabled": False}}}})
    assert ports_from(silent.one("NetworkPolicy", "step35-cluster"), MONITORING) == rays
    assert not [port for tier in TIERS for port in silent.container(tier)["ports"] if "telemetry" in port["name"]]


def test_exporters_take_the_ports_that_are_open(helm: Helm) -> None:
    """Real ones, as many as an attention pod may hold: each at a port that the pod declares and the policy opens, and
    the next finds none."""
    values = {"monitoring": {"telemetry": {"metrics": {"port": free_range(4), "num_ports": 4}}}}
    made = helm.template(values)
    metrics = ClusterConfig.model_validate(made.config).telemetry.metrics
    labels = ProcessLabels(Owner.GATEWAY, "a")
    exporters = [Exporter(RecordingMeter(Owner.GATEWAY), labels, metrics) for _ in range(metrics.num_ports + 1)]
    try:
        taken = [exporter.start() for exporter in exporters[:-1]]
        with pytest.raises(NoFreePort):
            exporters[-1].start()
    finally:
        for exporter in exporters:
            exporter.close()
    declared = [p["containerPort"] for p in made.container("attention")["ports"] if p["name"].startswith("telemetry-")]
    assert taken == declared
    assert set(taken) <= ports_from(made.one("NetworkPolicy", "step35-cluster"), MONITORING)


@pytest.mark.parametrize("gateways", [1, 2, 6])
def test_a_pod_declares_ports_for_all_that_may_run_on_it(helm: Helm, gateways: int) -> None:
    """What Serve may put there by its CPUs and labels, and one more where the next may start before the last has
    ended: a replica that takes a CPU waits for it, one that takes none does not. One more gateway is refused."""
    made = helm.template({"gateway": {"replicas": gateways}})
    cluster = made.service["rayClusterConfig"]
    groups = [{"groupName": "head", **cluster["headGroupSpec"]}, *cluster["workerGroupSpecs"]]
    num_cpus = {group["groupName"]: int(group["rayStartParams"]["num-cpus"]) for group in groups}
    deployments = [deployment for app in made.serve_config["applications"] for deployment in app["deployments"]]
    for tier in TIERS:
        free = [
            deployment.get("num_replicas", 1)
            for deployment in deployments
            if deployment.get("ray_actor_options") == {"num_cpus": 0, "label_selector": {"step35/tier": tier}}
        ]
        num_processes = num_cpus[tier] + sum(free) + bool(free)
        declared = {port["name"] for port in made.container(tier)["ports"] if port["name"].startswith("telemetry-")}
        assert len(declared) >= num_processes
        assert tier == "attention" or len(declared) == num_processes, "every other is a target that is always down"
    assert "num_ports" in helm.try_template({"gateway": {"replicas": 7}}).stderr


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
    assert outward(everything, "step35-cluster") == {53, 443, 6379}
    assert len(demo.all_of("NetworkPolicy")) == len(gpus.all_of("NetworkPolicy")) == 2


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://collector.monitoring:4318", 4318),
        ("http://[fd00::1]:14318/otlp", 14318),
        ("http://collector/v1:8", 80),
        ("https://otlp.example.com", 443),
    ],
)
def test_spans_leave_attention_pods_for_the_collector(helm: Helm, endpoint: str, port: int) -> None:
    """At the port of the address, to the peers that are named, and from no other pod: who opens tracing runs there."""
    peers = [{"ipBlock": {"cidr": "192.0.2.7/32"}}]
    tracing = {"monitoring": {"telemetry": {"tracing": {"endpoint": endpoint}}}}
    made = helm.template(tracing | {"networkPolicy": {"collector": peers}})
    spec = made.one("NetworkPolicy", "-attention")["spec"]
    assert spec["policyTypes"] == ["Egress"]
    assert spec["egress"] == [{"to": peers, "ports": [{"port": port, "protocol": "TCP"}]}]
    selected = spec["podSelector"]["matchLabels"].items()
    assert [tier for tier in TIERS if selected <= made.template(tier)["metadata"]["labels"].items()] == ["attention"]
    assert_valid(made, NEWEST)
    assert len(helm.template(tracing | {"networkPolicy": {"collector": []}}).all_of("NetworkPolicy")) == 2


def test_only_gateways_and_attention_actors_send_spans() -> None:
    """So only their pods reach the collector and read its headers."""
    callers = {
        (path.relative_to(ROOT).as_posix(), owner.name)
        for path in (ROOT / "cluster").rglob("*.py")
        for owner in ast.parse(path.read_text()).body
        if isinstance(owner, ast.FunctionDef | ast.ClassDef)
        for call in ast.walk(owner)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "open_tracing"
    }
    assert callers == {("cluster/deploy.py", "GatewayDeployment"), ("cluster/tiers.py", "build_attention")}


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


def test_the_chart_grants_the_watch_of_one_namespace_and_nothing_else(demo: Rendered, gpus: Rendered) -> None:
    """By default, and nothing at all in the demo; nodes only when asked for. KubeRay grants the autoscaler what it
    needs."""
    grants = {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    assert {made["kind"] for made in gpus.objects} & grants == {"Role", "RoleBinding"}
    assert not {made["kind"] for made in demo.objects} & grants
    asked = {(resource, verb) for verb, resource in EVERYTHING if resource != "nodes"}
    rules = gpus.one("Role")["rules"]
    assert {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]} == asked


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


def test_the_watch_is_granted_only_when_there_is_one(
    helm: Helm, demo: Rendered, gpus: Rendered, everything: Rendered
) -> None:
    """Where it is off the coordinator does not look, whatever token the autoscaler's pod has; where it is on, the head
    has a token and reaches the Kubernetes API. One file of ours imports the client."""
    sources = [path for package in ("cluster", "actors", "routing", "ops") for path in (ROOT / package).rglob("*.py")]
    callers = [path.relative_to(ROOT).as_posix() for path in sources if "kubernetes" in _imports(path.read_text())]
    assert callers == ["cluster/kube/api.py"]
    blind = helm.template({"autoscaling": {"enabled": True}})
    for rendered in (demo, blind):
        assert not rendered.all_of("Role")
        assert ClusterConfig.model_validate(rendered.config).kubernetes.enabled == "off"
    alone = helm.template({"nodeWatch": {"enabled": True}})
    for rendered, nodes in ((alone, False), (gpus, False), (everything, True)):
        watching = ClusterConfig.model_validate(rendered.config).kubernetes
        assert (watching.enabled, watching.nodes) == ("auto", nodes)
        assert rendered.template("head")["spec"]["automountServiceAccountToken"] is True
        (rule,) = rendered.one("NetworkPolicy", "-head")["spec"]["egress"]
        assert open_to(rule) == {443, 6443}


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
