"""From the configuration to what Ray is told: replica counts, actor options, health, shutdown and environment. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.config import ClusterConfig
from cluster.sections import ActorResources

# How often a stopping replica looks whether its requests have ended; Ray's own 2 s would add up over the tiers.
SHUTDOWN_CHECK_S = 0.2

# A health check runs on the replica's event loop, which a thread that loads weights may hold up.
HEALTH_TIMEOUT_S = 30.0

# Time beyond the drain for closing ports, threads and pools, before Ray kills the process.
CLOSE_TIMEOUT_S = 10.0

# Long polls and status calls of every member at once.
MAX_COORDINATOR_CALLS = 4096

# Requests a gateway holds for an attention actor besides those the engine itself lets run and wait.
REQUEST_SLACK = 16

SCALING_POLICY = "cluster.scaling_policy:AttentionScaling"

# Gateways leave out attention actors that are about to go, as soon as Serve has asked the actors.
ATTENTION_ROUTER = "cluster.attention_router:AttentionRouter"
ROUTING_STATS_PERIOD_S = 2.0


@dataclass(frozen=True)
class DeploymentOptions:
    """Arguments of `serve.deployment` that depend on the configuration. Seconds. num_replicas: the fewest, where
    autoscaling_config says how it follows the load."""

    num_replicas: int
    max_ongoing_requests: int
    graceful_shutdown_timeout_s: float
    health_check_period_s: float
    ray_actor_options: Mapping[str, Any]
    health_check_timeout_s: float = HEALTH_TIMEOUT_S
    graceful_shutdown_wait_loop_s: float = SHUTDOWN_CHECK_S
    # A constructor that fails twice in a row will fail again; Ray's 20 would hide the reason for many minutes.
    max_constructor_retry_count: int = 2
    max_queued_requests: int = -1  # of each caller, while no replica has room; -1: no bound
    autoscaling_config: Mapping[str, Any] | None = None
    request_router_config: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Serve takes a number of replicas or a way to find it, not both."""
        left_out = "autoscaling_config" if self.autoscaling_config is None else "num_replicas"
        options = {name: value for name, value in self.__dict__.items() if name != left_out}
        return {
            **options,
            "ray_actor_options": dict(self.ray_actor_options),
            "request_router_config": dict(self.request_router_config),
        }


def attention_options(config: ClusterConfig) -> DeploymentOptions:
    """An attention replica drains: its running requests end before it does."""
    engine = config.attention.engine
    return DeploymentOptions(
        num_replicas=config.attention.num_replicas,
        max_ongoing_requests=engine.max_running + engine.max_waiting + REQUEST_SLACK,
        graceful_shutdown_timeout_s=config.control.drain_timeout_s + CLOSE_TIMEOUT_S,
        health_check_period_s=config.control.health_check_s,
        ray_actor_options=actor_options(config.attention.resources),
        # Beyond what the engines let wait, a gateway holds no second queue that nobody sees.
        max_queued_requests=engine.max_waiting,
        autoscaling_config=autoscaling_options(config),
        request_router_config={
            "request_router_class": ATTENTION_ROUTER,
            "request_routing_stats_period_s": ROUTING_STATS_PERIOD_S,
        },
    )


def autoscaling_options(config: ClusterConfig) -> dict[str, Any] | None:
    """Ray's `AutoscalingConfig` of the attention tier. Without initial_replicas: Serve would go back to them whenever
    any of these values changes under a running cluster."""
    scaling = config.attention.autoscaling
    if scaling is None:
        return None
    return {
        "min_replicas": config.attention.num_replicas,
        "max_replicas": scaling.max_replicas,
        "target_ongoing_requests": scaling.target_sequences,  # Serve only shows it
        # The policy has delays of its own; Serve's would come on top.
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
        "policy": {
            "policy_function": SCALING_POLICY,
            "policy_kwargs": scaling.model_dump(mode="json", exclude_unset=True),
        },
    }


def expert_options(config: ClusterConfig) -> DeploymentOptions:
    """An expert replica takes no requests from Serve: rows reach it through its port."""
    return DeploymentOptions(
        num_replicas=config.experts.ep_size,
        max_ongoing_requests=1,
        graceful_shutdown_timeout_s=CLOSE_TIMEOUT_S,
        health_check_period_s=config.control.health_check_s,
        ray_actor_options=actor_options(config.experts.resources),
    )


def gateway_options(config: ClusterConfig) -> DeploymentOptions:
    """A gateway admits what its API limits allow; a few more calls carry health and readiness."""
    return DeploymentOptions(
        num_replicas=config.gateway.num_replicas,
        max_ongoing_requests=config.gateway.limits.max_concurrent_requests + REQUEST_SLACK,
        graceful_shutdown_timeout_s=config.control.drain_timeout_s + CLOSE_TIMEOUT_S,
        health_check_period_s=config.control.health_check_s,
        ray_actor_options={"num_cpus": 0},
    )


def coordinator_options(config: ClusterConfig) -> DeploymentOptions:
    """One coordinator: its state is small and its members rebuild it."""
    return DeploymentOptions(
        num_replicas=1,
        max_ongoing_requests=MAX_COORDINATOR_CALLS,
        graceful_shutdown_timeout_s=CLOSE_TIMEOUT_S,
        health_check_period_s=config.control.health_check_s,
        ray_actor_options={"num_cpus": 0},
    )


def actor_options(resources: ActorResources) -> dict[str, Any]:
    """What Ray reserves for one replica and which nodes may hold it."""
    options: dict[str, Any] = {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus}
    if resources.labels:
        options["label_selector"] = dict(resources.labels)
    return options


def tier_timeout_s(config: ClusterConfig) -> float:
    """Longest wait for one tier to stop: it drains, then closes, and somebody notices."""
    return config.control.drain_timeout_s + 2 * CLOSE_TIMEOUT_S


def process_environment(config: ClusterConfig) -> dict[str, str]:
    """Variables for the processes of a cluster started here; what the operator has set stays."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # Serve stops the callers of a deployment before it; this is how long it waits for them.
        "RAY_SERVE_SHUTDOWN_TIER_TIMEOUT_S": f"{tier_timeout_s(config):g}",
        # Serve's proxies obey headers of the client before a request reaches the gateway.
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "cluster.proxy_callback:proxy_middlewares",
        # Nine processes share a laptop's cores: more threads per process would only take turns.
        "OMP_NUM_THREADS": "1",
        # Ray starts workers at niceness 15, as befits batch jobs; these answer users.
        "RAY_worker_niceness": "0",
        "TOKENIZERS_PARALLELISM": "false",
        # torch's TCP store asks for the name of each address it connects to: a silent name server must not cost the
        # ten seconds that the resolver would wait.
        "RES_OPTIONS": "timeout:1 attempts:2",
    }
