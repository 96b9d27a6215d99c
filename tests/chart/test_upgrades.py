"""What a change does: in place, or a new cluster beside the old one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.helm import Helm, Rendered

TIERS = ("head", "attention", "experts")

LIGHT = {
    "attention actors": {"attention": {"replicas": 3}},
    "gateways": {"gateway": {"replicas": 3}},
    "spares": {"experts": {"spares": 2}},
    "clients": {"networkPolicy": {"clients": []}},
    "budget": {"experts": {"disruptionBudget": {"minAvailable": 1}}},
    "monitoring": {"monitoring": {"scrape": "PodMonitor", "intervalSeconds": 10, "alerts": True, "dashboards": True}},
}
HEAVY = {
    "engine": {"attention": {"engine": {"max_running": 8}}},
    "slots": {"experts": {"redundantSlots": 2}},
    "ranks": {"experts": {"epSize": 4}},
    "limits": {"gateway": {"limits": {"max_choices": 2}}},
    "balancing": {"balancing": {"interval_s": 30}},
    "transport": {"transport": "auto"},
    "model name": {"model": {"name": "other"}},
    "image": {"image": {"tag": "0.1.1"}},
    "keys": {"apiKeys": {"enabled": False}},
    "scraped ports": {"monitoring": {"telemetry": {"metrics": {"port": 9500}}}},
    "traces": {"monitoring": {"telemetry": {"tracing": {"endpoint": "http://c:4318"}}}},
}


def muted(rendered: Rendered) -> Any:
    """What KubeRay compares to decide on a new cluster: all but replica numbers and the workers to delete."""
    cluster = dict(rendered.service["rayClusterConfig"])
    numbers = {"replicas", "minReplicas", "maxReplicas"}
    groups = [
        {key: value for key, value in group.items() if key not in numbers} for group in cluster["workerGroupSpecs"]
    ]
    return {**cluster, "workerGroupSpecs": groups}


@pytest.mark.parametrize("values", LIGHT.values(), ids=LIGHT)
def test_light_values_change_in_place(helm: Helm, demo: Rendered, values: dict[str, Any]) -> None:
    """KubeRay sees the same cluster, and Serve the same code: builder and arguments stay."""
    changed = helm.template(values)
    assert muted(changed) == muted(demo)
    for before, after in zip(demo.serve_config["applications"], changed.serve_config["applications"], strict=True):
        assert (before["import_path"], before["args"]) == (after["import_path"], after["args"])


@pytest.mark.parametrize("values", HEAVY.values(), ids=HEAVY)
def test_heavy_values_make_a_new_cluster(helm: Helm, demo: Rendered, values: dict[str, Any]) -> None:
    """Never an in-place change, which would stop actors in the middle of their requests."""
    assert muted(helm.template(values)) != muted(demo)


def test_the_digest_is_of_the_cluster_config_alone(helm: Helm, demo: Rendered) -> None:
    """The same on all pods, and the same for the same values."""

    def digests(rendered: Rendered) -> set[str]:
        return {rendered.template(tier)["metadata"]["annotations"]["step35/heavy-digest"] for tier in TIERS}

    assert len(digests(demo)) == 1
    assert digests(helm.template()) == digests(demo)
    assert digests(helm.template({"logLevel": "debug"})) != digests(demo)


def test_replica_numbers_reach_serve_where_it_reads_them(helm: Helm) -> None:
    """Not in a file that a running application would never read again."""
    made = helm.template({"attention": {"replicas": 3}, "gateway": {"replicas": 4}})
    numbers = {
        deployment["name"]: deployment.get("num_replicas")
        for application in made.serve_config["applications"]
        for deployment in application["deployments"]
    }
    assert (numbers["AttentionActor"], numbers["Gateway"]) == (3, 4)
    assert (made.config["attention"]["num_replicas"], made.config["gateway"]["num_replicas"]) == (3, 4)


def test_a_site_without_spare_gpus_can_forgo_the_switch(helm: Helm, demo: Rendered) -> None:
    """KubeRay's own words."""
    assert demo.service["upgradeStrategy"] == {"type": "NewCluster"}
    assert helm.template({"upgrade": {"strategy": "None"}}).service["upgradeStrategy"] == {"type": "None"}
