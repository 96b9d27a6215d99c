"""What Ray is told: replica counts, options, and times that fit together."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config import ClusterConfig
from cluster.resources import (
    CLOSE_TIMEOUT_S,
    SCALING_POLICY,
    attention_options,
    coordinator_options,
    expert_options,
    gateway_options,
    process_environment,
)

ALL = (attention_options, expert_options, gateway_options, coordinator_options)


def config(**fields: Any) -> ClusterConfig:
    return ClusterConfig.model_validate({"checkpoint": "/models/step", **fields})


def test_replica_counts_follow_the_configuration() -> None:
    """One replica per EP rank, one coordinator whatever else is set."""
    settings = config(attention={"num_replicas": 3}, experts={"ep_size": 4}, gateway={"num_replicas": 2})
    assert [options(settings).num_replicas for options in ALL] == [3, 4, 2, 1]


def test_the_default_cluster_fits_one_cpu() -> None:
    """One attention actor and eight experts together reserve less than one core."""
    settings = config()
    reserved = sum(options(settings).num_replicas * options(settings).ray_actor_options["num_cpus"] for options in ALL)
    assert reserved <= 1.0


def test_labels_and_gpus_reach_ray() -> None:
    """As a label selector; without labels there is none."""
    settings = config(experts={"resources": {"num_cpus": 4, "num_gpus": 1, "labels": {"tier": "expert"}}})
    assert expert_options(settings).ray_actor_options == {
        "num_cpus": 4.0,
        "num_gpus": 1.0,
        "label_selector": {"tier": "expert"},
    }
    assert "label_selector" not in attention_options(settings).ray_actor_options


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, of pydantic and others, when it is imported
def test_serve_accepts_every_option() -> None:
    """No name that Ray Serve does not know, and no value out of its range."""
    from ray import serve

    class Anything:
        pass

    fixed = config(attention={"resources": {"labels": {"a": "b"}}})
    scaled = config(attention={"autoscaling": {}}, control={"drain_timeout_s": 600})
    for settings in (fixed, scaled):
        for options in ALL:
            serve.deployment(**options(settings).to_dict())(Anything)


def test_shutdown_times_nest() -> None:
    """A replica may drain as long as configured and then close; Serve waits longer than that for each tier."""
    settings = config(control={"drain_timeout_s": 40})
    assert attention_options(settings).graceful_shutdown_timeout_s == 40 + CLOSE_TIMEOUT_S
    tier_timeout_s = float(process_environment(settings)["RAY_SERVE_SHUTDOWN_TIER_TIMEOUT_S"])
    assert all(options(settings).graceful_shutdown_timeout_s < tier_timeout_s for options in ALL)


def test_an_autoscaled_tier_has_a_policy_in_place_of_a_number() -> None:
    """Serve refuses both; delays are the policy's, and its streams may end before a replica does."""
    scaling = {"max_replicas": 6, "upscale_delay_s": 5}
    settings = config(attention={"num_replicas": 2, "autoscaling": scaling}, control={"drain_timeout_s": 600})
    options = attention_options(settings).to_dict()
    assert "num_replicas" not in options
    assert "autoscaling_config" not in attention_options(config()).to_dict()
    made = options["autoscaling_config"]
    assert (made["min_replicas"], made["max_replicas"]) == (2, 6)
    assert (made["upscale_delay_s"], made["downscale_delay_s"]) == (0, 0)
    assert made["policy"] == {"policy_function": SCALING_POLICY, "policy_kwargs": scaling}
    assert options["graceful_shutdown_timeout_s"] >= settings.gateway.limits.request_timeout_s


def test_attention_admits_what_its_engine_can_hold() -> None:
    """The engine's own queue is the one that refuses, with its own error."""
    settings = config(attention={"engine": {"max_running": 5, "max_waiting": 9}})
    assert attention_options(settings).max_ongoing_requests > 5 + 9
