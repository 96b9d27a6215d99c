"""What reaches our processes: the ClusterConfig, Serve's configuration, the environment."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

from cluster.config import ClusterConfig
from cluster.resources import attention_options, process_environment
from tests.chart.conftest import PROFILES
from tests.chart.helm import ROOT, Helm, Rendered

# Ray's own, of pydantic and others, when it is imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# Values whose counterpart in ClusterConfig has another name.
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "limits": (
        {"gateway": {"limits": {"max_body_bytes": 16777216}}},
        {"gateway": {"limits": {"max_body_bytes": 2**24}}},
    ),
    "keys off": ({"apiKeys": {"enabled": False}}, {"gateway": {"api_keys_file": None}}),
    "balancing": ({"balancing": {"mode": "manual"}}, {"balancing": {"mode": "manual"}}),
    "context": ({"model": {"maxContextTokens": 32768}}, {"gateway": {"max_context_tokens": 32768}}),
    "rows": ({"collectiveCapacityRows": 64}, {"collective_capacity_rows": 64}),
    "slots": ({"experts": {"redundantSlots": 0}}, {"experts": {"num_redundant_slots": 0}}),
    "deterministic": ({"deterministic": True}, {"deterministic": True}),
    "cache": (
        {"attention": {"engine": {"kv_cache_tokens": 1000000}}},
        {"attention": {"engine": {"kv_cache_tokens": 10**6}}},
    ),
    "drain": ({"gateway": {"limits": {"request_timeout_s": 90}}}, {"control": {"drain_timeout_s": 90}}),
    "admin": ({"admin": {"enabled": False, "existingSecret": ""}}, {"admin": {"enabled": False}}),
    "log": ({"logLevel": "debug"}, {"log_level": "debug"}),
    "kubernetes": (
        {"nodeWatch": {"enabled": True}, "kubernetes": {"topology_labels": ["rack"]}},
        {"kubernetes": {"enabled": "auto", "nodes": False, "topology_labels": ["rack"]}},
    ),
    "scrapes": (
        {"monitoring": {"telemetry": {"metrics": {"port": 9500, "num_ports": 5, "expert_matrix": True}}}},
        {"telemetry": {"metrics": {"host": "0.0.0.0", "port": 9500, "num_ports": 5, "expert_matrix": True}}},
    ),
    "traces": (
        {
            "monitoring": {
                "telemetry": {"tracing": {"endpoint": "http://c:4318", "sample_ratio": 0.5, "max_queue_spans": 512}},
                "collector": {"existingSecret": "collector"},
            }
        },
        {
            "telemetry": {
                "tracing": {
                    "endpoint": "http://c:4318",
                    "sample_ratio": 0.5,
                    "max_queue_spans": 512,
                    "capture_content": False,
                    "headers_file": "/etc/step35/collector/headers",
                }
            }
        },
    ),
    "no traces": ({}, {"telemetry": {"tracing": {"endpoint": None, "headers_file": None}, "logs": {"format": "json"}}}),
    "plain logs": (
        {"monitoring": {"telemetry": {"logs": {"format": "text"}}}},
        {"telemetry": {"logs": {"format": "text"}}},
    ),
}


@pytest.mark.parametrize("profile", PROFILES)
def test_the_config_map_is_exactly_a_cluster_config(profiles: dict[str, Rendered], profile: str) -> None:
    """It loads, loses nothing on the way, and its tiers ask for the nodes that the worker groups are."""
    rendered = profiles[profile]
    config = ClusterConfig.model_validate(rendered.config)
    assert config.to_dict() == ClusterConfig.model_validate(config.to_dict()).to_dict()
    for tier, wanted in (("attention", config.attention.resources), ("experts", config.experts.resources)):
        group = rendered.group(tier)
        assert group["labels"] == wanted.labels
        assert float(group["rayStartParams"]["num-cpus"]) == wanted.num_cpus == 1, "one actor in a pod"
    assert rendered.group("experts")["replicas"] >= config.experts.ep_size


@pytest.mark.parametrize(("values", "expected"), SETTINGS.values(), ids=SETTINGS)
def test_values_reach_the_cluster_config(helm: Helm, values: dict[str, Any], expected: dict[str, Any]) -> None:
    """Each of them, as the field that it means."""
    config = ClusterConfig.model_validate(helm.template(values).config).model_dump(mode="json")
    assert_within(expected, config)


@pytest.mark.parametrize("profile", PROFILES)
def test_serve_accepts_its_configuration(profiles: dict[str, Rendered], profile: str) -> None:
    """By Serve's own schema; the names are those that cluster/deploy.py gives, the builders exist."""
    from ray.serve.schema import ServeDeploySchema

    from cluster.deploy import ATTENTION, COORDINATOR, GATEWAY, gateway_app_name

    rendered = profiles[profile]
    config = ClusterConfig.model_validate(rendered.config)
    schema = ServeDeploySchema.model_validate(rendered.serve_config)
    engine, gateway = schema.applications
    assert (engine.name, gateway.name) == (config.ray.app_name, gateway_app_name(config))
    assert (engine.route_prefix, gateway.route_prefix) == (None, "/")
    assert {made.name for made in engine.deployments} == {COORDINATOR, ATTENTION}
    assert {made.name for made in gateway.deployments} == {GATEWAY}
    for application in schema.applications:
        module, _, name = application.import_path.partition(":")
        builder = getattr(importlib.import_module(module), name)
        (parameter,) = inspect.signature(builder).parameters.values()
        parameter.annotation.model_validate(application.args)
    assert schema.http_options.port == config.gateway.port
    assert schema.http_options.request_timeout_s is None, "the API has deadlines of its own"


@pytest.mark.parametrize(("given", "expected"), [("json", "JSON"), ("text", "TEXT")])
def test_serves_own_logs_look_like_ours(helm: Helm, given: str, expected: str) -> None:
    """Ray Serve has words of its own for them, which its schema knows."""
    from ray.serve.schema import ServeDeploySchema

    made = helm.template({"monitoring": {"telemetry": {"logs": {"format": given}}}})
    logging_config = ServeDeploySchema.model_validate(made.serve_config).logging_config
    assert logging_config is not None
    assert logging_config.encoding == expected


def test_serve_reads_the_file_that_is_mounted(demo: Rendered) -> None:
    """On the head, where the engine is built, and on attention pods, where the gateway is."""
    for application, tier in (("step35", "head"), ("step35-gateway", "attention")):
        (made,) = [found for found in demo.serve_config["applications"] if found["name"] == application]
        selectors = [d["ray_actor_options"]["label_selector"] for d in made["deployments"] if "ray_actor_options" in d]
        assert selectors == [{"step35/tier": tier}]
        mounts = {mount["mountPath"] for mount in demo.container(tier)["volumeMounts"]}
        assert made["args"]["config"] in mounts


def test_attention_is_autoscaled_within_its_bounds(gpus: Rendered, demo: Rendered) -> None:
    """Replicas by Serve, pods by the autoscaler; without autoscaling both are fixed."""
    (attention,) = [d for d in gpus.serve_config["applications"][0]["deployments"] if d["name"] == "AttentionActor"]
    scaling, group = attention["autoscaling_config"], gpus.group("attention")
    assert attention["num_replicas"] == "auto"
    assert scaling == attention_options(ClusterConfig.model_validate(gpus.config)).autoscaling_config
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (group["minReplicas"], group["maxReplicas"]) == (2, 8)
    assert gpus.service["rayClusterConfig"]["enableInTreeAutoscaling"] is True
    fixed = demo.group("attention")
    assert fixed["minReplicas"] == fixed["maxReplicas"] == fixed["replicas"] == 1
    assert demo.service["rayClusterConfig"]["enableInTreeAutoscaling"] is False


@pytest.mark.parametrize("policy", ["", "site.scaling:policy"])
def test_another_policy_gets_serves_own_delays(helm: Helm, policy: str) -> None:
    """Ray's own, and one that the image has besides: Serve keeps the delays for them."""
    made = helm.template({"autoscaling": {"enabled": True, "policy": policy, "upscaleDelaySeconds": 20}})
    (attention,) = [d for d in made.serve_config["applications"][0]["deployments"] if d["name"] == "AttentionActor"]
    scaling = attention["autoscaling_config"]
    assert scaling.get("policy") == ({"policy_function": policy} if policy else None)
    assert (scaling["upscale_delay_s"], scaling["downscale_delay_s"]) == (20, 1200)


def test_the_ep_size_is_fixed_and_spares_come_on_top(helm: Helm) -> None:
    """The autoscaler can take none of them away."""
    group = helm.template({"experts": {"epSize": 4, "spares": 2}}).group("experts")
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 6


def test_processes_get_the_environment_that_serve_gives_them(demo: Rendered) -> None:
    """`step35 serve` sets it for its own; OMP_NUM_THREADS is a laptop's, and a value in the demo."""
    wanted = process_environment(ClusterConfig.model_validate(demo.config))
    for tier in ("head", "attention", "experts"):
        given = {entry["name"]: entry.get("value") for entry in demo.container(tier)["env"]}
        missing = {name: value for name, value in wanted.items() if given.get(name) != value}
        assert missing.keys() <= ({"OMP_NUM_THREADS"} if tier == "head" else set())


def test_kuberay_is_told_the_ray_that_is_pinned(demo: Rendered) -> None:
    """constraints.txt decides; KubeRay chooses flags by it."""
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert demo.service["rayClusterConfig"]["rayVersion"] == pinned["ray"]


def assert_within(expected: dict[str, Any], actual: dict[str, Any]) -> None:
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_within(value, actual[key])
        else:
            assert actual[key] == value, key
