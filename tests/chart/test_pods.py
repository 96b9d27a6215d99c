"""The three pod templates: who they run as, what they can write, how they are asked for health, how they end."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config import ClusterConfig
from tests.chart.conftest import PROFILES
from tests.chart.helm import Helm, Rendered

TIERS = ("head", "attention", "experts")
NODE_ONLY = {"weights", "config", "api-keys", "admin", "collector", "drain"}  # nobody writes there


def containers(rendered: Rendered, tier: str) -> list[dict[str, Any]]:
    spec = rendered.template(tier)["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_runs_with_more_rights_than_it_needs(profiles: dict[str, Rendered], profile: str) -> None:
    """Not root, no escalation, no capability but IPC_LOCK with RDMA, the runtime's seccomp profile."""
    rendered = profiles[profile]
    specs = [rendered.template(tier)["spec"] for tier in TIERS] + [rendered.one("Pod", "-test")["spec"]]
    for spec in specs:
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] >= 1
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & spec.keys()
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["privileged"] is False
            assert own["capabilities"]["drop"] == ["ALL"]
            added = own["capabilities"].get("add", [])
            assert added == (["IPC_LOCK"] if "rdma/ib" in container["resources"]["requests"] else [])


def test_roots_are_read_only_but_where_the_gpu_runtime_writes(demo: Rendered, gpus: Rendered) -> None:
    """And then what must be writable is a volume with a size."""
    assert all(made["securityContext"]["readOnlyRootFilesystem"] for tier in TIERS for made in containers(demo, tier))
    writable = [tier for tier in TIERS if not gpus.container(tier)["securityContext"]["readOnlyRootFilesystem"]]
    assert writable == ["attention", "experts"]
    for tier in TIERS:
        mounts = {mount["mountPath"]: mount for mount in demo.container(tier)["volumeMounts"]}
        assert {"/tmp", "/tmp/ray", "/dev/shm"} == {path for path, mount in mounts.items() if not mount.get("readOnly")}
        volumes = {volume["name"]: volume for volume in demo.template(tier)["spec"]["volumes"]}
        assert volumes["shared-mem"]["emptyDir"]["medium"] == "Memory"
        assert all(made["emptyDir"].get("sizeLimit") for made in volumes.values() if "emptyDir" in made)


def test_kuberay_finds_the_volumes_that_it_would_add(demo: Rendered) -> None:
    """By name and path; otherwise the autoscaler beside the head would log into another folder."""
    mounts = {mount["mountPath"]: mount["name"] for mount in demo.container("head")["volumeMounts"]}
    assert (mounts["/dev/shm"], mounts["/tmp/ray"]) == ("shared-mem", "ray-logs")


def test_the_autoscaler_is_as_restricted_as_the_head(gpus: Rendered) -> None:
    """KubeRay adds it to the head's pod; its limits are ours to say."""
    options = gpus.service["rayClusterConfig"]["autoscalerOptions"]
    assert options["version"] == "v2"
    assert options["securityContext"] == gpus.container("head")["securityContext"]
    names = {volume["name"] for volume in gpus.template("head")["spec"]["volumes"]}
    assert {mount["name"] for mount in options["volumeMounts"]} <= names


def test_secrets_go_only_where_they_are_read(demo: Rendered) -> None:
    """API keys to the gateway's pods, the operator's token to the coordinator's; none in a ConfigMap."""
    mounted = {tier: {mount["name"] for mount in demo.container(tier)["volumeMounts"]} for tier in TIERS}
    assert [tier for tier in TIERS if "api-keys" in mounted[tier]] == ["attention"]
    assert [tier for tier in TIERS if "admin" in mounted[tier]] == ["head"]
    assert not demo.all_of("Secret")
    config = ClusterConfig.model_validate(demo.config)
    keys = next(v for v in demo.template("attention")["spec"]["volumes"] if v["name"] == "api-keys")["secret"]
    assert str(config.gateway.api_keys_file) == f"/etc/step35/api-keys/{keys['items'][0]['path']}"
    mounts = [mount for mount in demo.container("attention")["volumeMounts"] if mount["name"] == "api-keys"]
    assert all("subPath" not in mount for mount in mounts), "a file mounted by itself never changes"
    token = next(v for v in demo.template("head")["spec"]["volumes"] if v["name"] == "admin")["secret"]
    assert str(config.admin.token_file) == f"/etc/step35/admin/{token['items'][0]['path']}"


def test_headers_for_the_collector_go_only_where_spans_come_from(everything: Rendered, demo: Rendered) -> None:
    """To attention pods, with the gateways, from a Secret, under the name in the ClusterConfig; not into an
    environment, which every child and every `kubectl describe` of a debugger's copy would show."""
    mounted = {tier: {mount["name"] for mount in everything.container(tier)["volumeMounts"]} for tier in TIERS}
    assert [tier for tier in TIERS if "collector" in mounted[tier]] == ["attention"]
    volumes = {volume["name"]: volume for volume in everything.template("attention")["spec"]["volumes"]}
    secret = volumes["collector"]["secret"]
    assert (secret["secretName"], secret["items"]) == ("collector", [{"key": "headers", "path": "headers"}])
    (mount,) = [found for found in everything.container("attention")["volumeMounts"] if found["name"] == "collector"]
    config = ClusterConfig.model_validate(everything.config)
    assert str(config.telemetry.tracing.headers_file) == f"{mount['mountPath']}/{secret['items'][0]['path']}"
    names = {volume["name"] for tier in TIERS for volume in demo.template(tier)["spec"]["volumes"]}
    assert "collector" not in names


def test_what_is_only_read_is_mounted_so(everything: Rendered) -> None:
    """Only the container that fetches the weights writes them."""
    for tier in TIERS:
        mounts = everything.container(tier)["volumeMounts"]
        assert all(mount.get("readOnly") for mount in mounts if mount["name"] in NODE_ONLY)


def test_a_pod_has_the_time_of_the_longest_stream_to_end(helm: Helm) -> None:
    """So have the engine's drain and the old cluster after a switch."""
    rendered = helm.template({"gateway": {"limits": {"request_timeout_s": 1800}}})
    for tier in TIERS:
        assert rendered.template(tier)["spec"]["terminationGracePeriodSeconds"] > 1800
    assert rendered.service["rayClusterDeletionDelaySeconds"] > 1800
    assert rendered.config["control"]["drain_timeout_s"] == 1800


def test_a_worker_drains_before_it_ends(demo: Rendered) -> None:
    """preStop leaves time for Ray to stop; the script and its arguments are there."""
    for tier in ("attention", "experts"):
        command = demo.container(tier)["lifecycle"]["preStop"]["exec"]["command"]
        grace = demo.template(tier)["spec"]["terminationGracePeriodSeconds"]
        assert command[:2] == ["bash", "/etc/step35/drain/drain.sh"]
        assert 0 < int(command[2]) < grace
        assert int(command[3]) == demo.config["gateway"]["port"]
    assert "drain.sh" in demo.one("ConfigMap", "-drain")["data"]
    assert "lifecycle" not in demo.container("head")


def test_probes_wait_for_long_loads(demo: Rendered) -> None:
    """Ray's own health keeps a pod alive while its actor loads; only readiness asks whether a proxy answers."""
    for tier in TIERS:
        container = demo.container(tier)
        for name in ("startupProbe", "livenessProbe"):
            assert "/-/healthz" not in container[name]["exec"]["command"][-1]
            assert container[name]["periodSeconds"] * container[name]["failureThreshold"] >= 120
    for tier in ("attention", "experts"):
        assert "/-/healthz" in demo.container(tier)["readinessProbe"]["exec"]["command"][-1]
    assert demo.one("RayService")["metadata"]["annotations"]["ray.io/initializing-timeout"] == "600s"


def test_devices_are_asked_for_by_each_actors_pod(gpus: Rendered, profiles: dict[str, Rendered]) -> None:
    """As many GPUs as the actor takes, RDMA devices on top, and none for the head."""
    config = ClusterConfig.model_validate(gpus.config)
    for tier, wanted in (("attention", config.attention.resources), ("experts", config.experts.resources)):
        resources = gpus.container(tier)["resources"]
        assert (
            int(resources["limits"]["nvidia.com/gpu"])
            == int(resources["requests"]["nvidia.com/gpu"])
            == wanted.num_gpus
        )
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in gpus.template(tier)["spec"][
            "tolerations"
        ]
    assert "nvidia.com/gpu" not in gpus.container("head")["resources"]["limits"]
    rdma = profiles["values-multinode-rdma.yaml"]
    assert rdma.container("experts")["resources"]["limits"]["rdma/ib"] == "1"
    names = {entry["name"] for entry in rdma.container("experts")["env"]}
    assert {"NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "GLOO_SOCKET_IFNAME"} <= names
    assert not names & {entry["name"] for entry in rdma.container("head")["env"] if "NCCL" in entry["name"]}


def test_no_work_but_rays_own_and_the_coordinators_runs_on_the_head(demo: Rendered) -> None:
    """And the head carries no traffic."""
    head = demo.service["rayClusterConfig"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert demo.service["excludeHeadPodFromServeSvc"] is True
    (coordinator,) = [d for d in demo.serve_config["applications"][0]["deployments"] if d["name"] == "Coordinator"]
    assert coordinator["ray_actor_options"]["label_selector"] == head["labels"]


def test_pods_of_a_tier_are_spread_and_placed_as_said(everything: Rendered, demo: Rendered) -> None:
    """Spread by the tier's own labels; classes, labels, annotations and claims go through."""
    for tier in ("attention", "experts"):
        (spread,) = demo.template(tier)["spec"]["topologySpreadConstraints"]
        labels = demo.template(tier)["metadata"]["labels"]
        assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
    template = everything.template("attention")
    assert template["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "llm"
    assert template["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"] == "rdma-net"
    assert everything.template("experts")["metadata"]["labels"]["ray.io/gang-scheduling-enabled"] == "true"
    spec = template["spec"]
    assert (spec["priorityClassName"], spec["runtimeClassName"], spec["schedulerName"]) == (
        "serving",
        "nvidia",
        "volcano",
    )
    assert everything.container("attention")["resources"]["claims"] == [{"name": "gpu"}]


def test_ray_asks_for_a_token_unless_told_otherwise(demo: Rendered, everything: Rendered, helm: Helm) -> None:
    """KubeRay makes the token, or takes the Secret that is named."""
    assert demo.service["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    assert everything.service["rayClusterConfig"]["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    off = helm.template({"ray": {"auth": {"enabled": False}}})
    assert off.service["rayClusterConfig"]["authOptions"] == {"mode": "disabled"}


def test_a_digest_wins_over_a_tag(everything: Rendered, demo: Rendered) -> None:
    """In every container."""
    images = {made["image"] for tier in TIERS for made in containers(everything, tier)}
    assert images == {"ghcr.io/step35-cluster/step35-cluster@sha256:" + "a" * 64}
    assert demo.container("head")["image"].endswith(":0.1.0")


def test_disruption_budgets_keep_experts_covered(helm: Helm, demo: Rendered) -> None:
    """All ranks without a spare, all but one with one; numbers, because a RayCluster has no scale."""

    def least(tier: str, values: dict[str, Any]) -> int:
        made: int = helm.template(values).one("PodDisruptionBudget", tier)["spec"]["minAvailable"]
        return made

    assert least("experts", {"experts": {"epSize": 8}}) == 8
    assert least("experts", {"experts": {"epSize": 8, "spares": 1}}) == 7
    assert least("experts", {"experts": {"epSize": 8, "disruptionBudget": {"minAvailable": 6}}}) == 6
    assert least("attention", {}) == 1
    assert least("attention", {"attention": {"replicas": 4}}) == 3
    assert least("attention", {"autoscaling": {"enabled": True, "minReplicas": 3}}) == 2
    for tier in ("attention", "experts"):
        spec = demo.one("PodDisruptionBudget", tier)["spec"]
        assert spec["selector"]["matchLabels"].items() <= demo.template(tier)["metadata"]["labels"].items()
        assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
