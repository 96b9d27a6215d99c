"""The policy as Serve runs it: Ray's own context in, Ray's own wrapper around it, its state handed on."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from actors.messages import LoadReport
from cluster.autoscaling import AutoscalerState, GatewayLoad
from cluster.config import ClusterConfig
from cluster.resources import attention_options
from cluster.scaling_policy import STATE, AttentionScaling, observation, replica_stats
from ops.bench.autoscaling import ServeDefault

# Ray's own, of pydantic and others, when it is imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Point = tuple[float, Mapping[str, float]]  # a second and what was published then


def context(now: float, published: Mapping[str, list[Point]], *, target: int, **fields: Any) -> Any:
    """Ray's context. published: by replica; a replica that runs and says nothing has an empty list."""
    from ray.serve._private.common import TimeStampedValue
    from ray.serve.config import AutoscalingContext

    raw: dict[str, dict[str, list[Any]]] = {}
    for replica, points in published.items():
        for second, stats in points:
            for name, value in stats.items():
                raw.setdefault(name, {}).setdefault(replica, []).append(TimeStampedValue(second, value))
    given = {
        "deployment_id": None,
        "deployment_name": "AttentionActor",
        "app_name": "step35",
        "total_num_requests": 0.0,
        "total_queued_requests": 0.0,
        "aggregated_metrics": {},
        "capacity_adjusted_min_replicas": 1,
        "capacity_adjusted_max_replicas": 4,
        "policy_state": {},
        "last_scale_up_time": None,
        "last_scale_down_time": None,
        "config": None,
        **fields,
    }
    return AutoscalingContext(
        current_num_replicas=len(published),
        target_num_replicas=target,
        running_replicas=list(published),
        raw_metrics=raw,
        current_time=now,
        **given,
    )


def stats(running: int, accepted: int, gateways: GatewayLoad | None = None) -> dict[str, float]:
    return replica_stats(LoadReport(running, 2, 0, 0.25, 9), accepted, gateways)


def test_what_replicas_publish_is_what_is_observed() -> None:
    """The newest numbers of each, its rate over the whole series, and the newest picture of the gateways; a latency
    that is no longer told is not observed, a replica that has told nothing counts as ready only."""
    older, newer = GatewayLoad(1.0, 7, 20.0, 0.05), GatewayLoad(2.0, 9, 21.0, None)
    published: dict[str, list[Point]] = {
        "a": [(90.0, stats(3, 10, older)), (96.0, stats(4, 13, newer))],
        "b": [(92.0, stats(5, 4, older))],
        "c": [],
    }
    seen = observation(context(100.0, published, target=4))
    assert (seen.now, seen.num_ready, seen.num_present, seen.min_replicas, seen.max_replicas) == (100.0, 3, 4, 1, 4)
    first, second = seen.replicas
    assert (first.num_running, first.num_waiting, first.kv_usage, first.age_s) == (4, 2, 0.25, 4.0)
    assert (first.requests_per_s, second.requests_per_s, second.age_s) == (0.5, 0.0, 8.0)
    assert seen.gateways == GatewayLoad(96.0, 9, 21.0, None)


def test_without_gateways_there_is_no_picture_of_them() -> None:
    """The coordinator is away: replicas publish what is theirs."""
    assert observation(context(9.0, {"a": [(8.0, stats(1, 1))]}, target=1)).gateways is None
    assert observation(context(9.0, {}, target=1)).replicas == ()


def test_only_numbers_are_published() -> None:
    """Serve switches off for good what returns anything else."""
    full = stats(1, 2, GatewayLoad(1.0, 3, None, 0.1))
    assert all(isinstance(value, int | float) for value in full.values())
    assert "request_s" not in full


def test_serve_runs_it_from_the_configuration() -> None:
    """By the import path and arguments of the deployment's options, pickled as Serve pickles it, with Serve's own
    scaling and delays around it: 60 sequences make two of one, after the policy's delay alone."""
    from ray.serve._private.autoscaling_state import _resolve_policy_callable
    from ray.serve.autoscaling_policy import _apply_autoscaling_config
    from ray.serve.config import AutoscalingConfig as RayConfig

    scaling = {"max_replicas": 4, "upscale_delay_s": 20}
    made = ClusterConfig.model_validate(
        {"checkpoint": "/a", "attention": {"autoscaling": scaling}, "control": {"drain_timeout_s": 600}}
    )
    config = RayConfig(**attention_options(made).to_dict()["autoscaling_config"])
    policy = _apply_autoscaling_config(_resolve_policy_callable(config.policy))
    state: dict[str, Any] = {}
    answers = []
    for now in range(0, 30, 5):
        told = {"a": [(float(now), stats(60, 1, GatewayLoad(0, 0)))]}
        answer, state = policy(context(float(now), told, target=1, policy_state=state, config=config))
        answers.append(answer)
    assert answers == [1, 1, 1, 1, 2, 1]
    assert isinstance(state[STATE], AutoscalerState)


def test_wrong_arguments_fail_at_once() -> None:
    """When Serve makes the policy, not at its first decision."""
    with pytest.raises(ValidationError, match="target_sequence"):
        AttentionScaling(target_sequence=3)


def test_the_benchmarks_copy_of_serves_policy_is_serves() -> None:
    """The same numbers on random loads, with Serve's code in place of the copy."""
    from ray.serve.autoscaling_policy import _apply_autoscaling_config, replica_queue_length_autoscaling_policy
    from ray.serve.config import AutoscalingConfig as RayConfig

    config = RayConfig(
        min_replicas=1, max_replicas=8, target_ongoing_requests=24, upscale_delay_s=30, downscale_delay_s=300
    )
    theirs, ours = _apply_autoscaling_config(replica_queue_length_autoscaling_policy), ServeDefault(24, 30, 300)
    # Serve's delays read the clock, so time has to be given to them.
    import ray.serve.autoscaling_policy as module

    rng, state, present, clock = random.Random(3), {}, 1, [0.0]
    delays = module._apply_delay_logic
    module._apply_delay_logic = lambda *args: delays(*args, _now=clock[0])
    try:
        for _ in range(4000):
            clock[0] += 5
            total = rng.uniform(0, 150) if int(clock[0]) % 2000 < 1000 else rng.uniform(0, 30)
            made = context(
                clock[0],
                {str(n): [] for n in range(present)},
                target=present,
                policy_state=state,
                config=config,
                total_num_requests=total,
            )
            expected, state = theirs(made)
            assert ours.next(total, present, present, clock[0]) == expected
            present = min(max(expected, 1), 8)
    finally:
        module._apply_delay_logic = delays
