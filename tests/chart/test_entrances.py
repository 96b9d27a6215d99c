"""Service, Ingress and HTTPRoute: the API's routes and nothing else, for as long as a stream may last."""

from __future__ import annotations

import pytest

from tests.chart.helm import Helm, Rendered

# Ray's own, of pydantic and others, when it is imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROUTED = {"/v1", "/health", "/ready"}


def test_kuberay_makes_the_apis_service_under_the_releases_name(demo: Rendered, everything: Rendered) -> None:
    """One of our own could not follow an upgrade from cluster to cluster."""
    service = demo.service["serveService"]
    assert service["metadata"]["name"] == "demo-step35-cluster"
    assert service["spec"] == {"type": "ClusterIP", "ports": [{"name": "serve", "port": 8000}]}
    assert not [made for made in demo.all_of("Service") if made["spec"].get("type") != "ClusterIP"]
    assert everything.service["serveService"]["spec"]["type"] == "LoadBalancer"
    assert everything.service["serveService"]["metadata"]["annotations"] == {"example.com/internal": "true"}


def test_names_leave_room_for_kuberay(helm: Helm) -> None:
    """47 characters, and none of them ends in a hyphen."""
    made = helm.template({"nameOverride": "a-very-long-name-that-goes-on-and-on-for-quite-a-while"})
    name = made.one("RayService")["metadata"]["name"]
    assert len(name) <= 47
    assert not name.endswith("-")


def test_an_ingress_carries_the_apis_routes_and_streams(everything: Rendered) -> None:
    """No buffering, a time-out above the longest stream, TLS as said; neither the dashboard nor Serve's own routes."""
    made = everything.one("Ingress")
    (rule,) = made["spec"]["rules"]
    assert {path["path"] for path in rule["http"]["paths"]} == ROUTED
    ports = {path["backend"]["service"]["port"]["name"] for path in rule["http"]["paths"]}
    names = {path["backend"]["service"]["name"] for path in rule["http"]["paths"]}
    assert (ports, names) == ({"serve"}, {everything.service["serveService"]["metadata"]["name"]})
    annotations = made["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert int(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"]) > 600
    assert made["spec"]["tls"] == [{"hosts": ["llm.example.com"], "secretName": "llm-tls"}]


def test_an_annotation_given_wins(helm: Helm) -> None:
    """Over the chart's own."""
    name = "nginx.ingress.kubernetes.io/proxy-read-timeout"
    made = helm.template({"ingress": {"enabled": True, "host": "h", "annotations": {name: "5"}}}).one("Ingress")
    assert made["metadata"]["annotations"][name] == "5"


def test_an_http_route_carries_the_apis_routes_and_streams(everything: Rendered) -> None:
    """The same routes, and time-outs above the longest stream."""
    spec = everything.one("HTTPRoute")["spec"]
    (rule,) = spec["rules"]
    assert {match["path"]["value"] for match in rule["matches"]} == ROUTED
    assert {match["path"]["type"] for match in rule["matches"]} == {"PathPrefix", "Exact"}
    assert all(int(value.removesuffix("s")) > 600 for value in rule["timeouts"].values())
    assert rule["backendRefs"] == [{"name": everything.service["serveService"]["metadata"]["name"], "port": 8000}]
    assert (spec["parentRefs"], spec["hostnames"]) == ([{"name": "gateway"}], ["llm.example.com"])


def test_there_is_no_entrance_by_default(demo: Rendered) -> None:
    """Neither of them, and no Service of a type that leaves the cluster."""
    assert not demo.all_of("Ingress")
    assert not demo.all_of("HTTPRoute")


def test_notes_name_the_next_commands(helm: Helm) -> None:
    """How to watch, to call, to test and to look at the experts, with what is installed; and warn of what is open."""
    notes = helm.template(notes=True).text.split("NOTES:")[1]
    for words in (
        "rayservice demo-step35-cluster -w",
        "port-forward svc/demo-step35-cluster",
        "helm -n models test demo",
    ):
        assert words in notes
    assert '"model": "step-nano"' in notes
    assert "WARNING" not in notes
    bare = {"apiKeys": {"enabled": False}, "ray": {"auth": {"enabled": False}}}
    warned = helm.template(bare, notes=True).text.split("NOTES:")[1]
    assert warned.count("WARNING") == 2
    assert "authorization: Bearer" not in warned
    tracing = {"endpoint": "http://c:4318", "capture_content": True}
    told = helm.template({"monitoring": {"telemetry": {"tracing": tracing}}}, notes=True).text.split("NOTES:")[1]
    assert "prompts and answers go to http://c:4318" in told


def test_the_helm_test_asks_the_service_with_the_key(demo: Rendered, helm: Helm) -> None:
    """A hook that cleans up after itself; without tests there is nothing of it."""
    pod = demo.one("Pod", "-test")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod["spec"]["containers"]
    assert container["command"][-1] == "http://demo-step35-cluster:8000"
    env = {entry["name"]: entry for entry in container["env"]}
    assert env["API_NEEDS_KEY"]["value"] == "true"
    assert env["API_KEY"]["valueFrom"]["secretKeyRef"] == {"name": "step35-keys", "key": "keys"}
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert not helm.template({"tests": {"enabled": False}}).all_of("Pod")
