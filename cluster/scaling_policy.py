"""The autoscaling policy as Ray Serve runs it: numbers that replicas publish in, a number of replicas out.

Serve's controller makes one `AttentionScaling` and calls it ten times a second, so nothing here waits. Serve ships this
module to the controller by value and everything it imports by name. Replicas publish `replica_stats` through
`record_autoscaling_stats`; Serve samples it every 6 s and brings it to the controller every 10 s.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from actors.messages import LoadReport
from cluster.autoscaling import (
    AutoscalerState,
    AutoscalingConfig,
    GatewayLoad,
    Observation,
    ReplicaLoad,
    decide,
)

# The controller's own logger: no other one of its process has a handler.
logger = logging.getLogger("ray.serve")

STATE = "attention_scaling"
RUNNING, WAITING, KV_USAGE, ACCEPTED_TOTAL = "num_running", "num_waiting", "kv_usage", "accepted_total"
SHED_TOTAL, REQUEST_S, ITL_P99_S = "shed_total", "request_s", "itl_p99_s"


class Sample(Protocol):
    """One point of Ray's time series."""

    @property
    def timestamp(self) -> float: ...
    @property
    def value(self) -> float: ...


class ScalingContext(Protocol):
    """What is read of Ray's `AutoscalingContext`. raw_metrics: by name and replica, oldest first."""

    running_replicas: Sequence[Any]
    target_num_replicas: int
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int
    policy_state: Mapping[str, Any]
    current_time: float | None
    raw_metrics: Mapping[str, Mapping[Any, Sequence[Sample]]] | None


class AttentionScaling:
    """A deployment-level autoscaling policy. Bounds come from Serve, which may change them while it runs."""

    def __init__(self, **fields: Any) -> None:
        """fields: of AutoscalingConfig, by way of Serve's policy_kwargs. Raises ValidationError."""
        self._config = AutoscalingConfig.model_validate(fields)

    def __call__(self, context: ScalingContext) -> tuple[int, dict[str, Any]]:
        """Called by Serve: the number of replicas to have, and the state that it hands back at the next call."""
        seen = observation(context)
        decision, state = decide(self._config, context.policy_state.get(STATE, AutoscalerState()), seen)
        if decision.change != "hold":
            logger.info("attention autoscaling: %s", decision.why)
        return decision.replicas, {STATE: state}


def replica_stats(load: LoadReport, num_accepted: int, gateways: GatewayLoad | None) -> dict[str, float]:
    """What one attention replica publishes. Numbers only, or Serve would never ask again."""
    stats: dict[str, float] = {
        RUNNING: load.num_running,
        WAITING: load.num_waiting,
        KV_USAGE: load.kv_usage,
        ACCEPTED_TOTAL: num_accepted,
    }
    if gateways is not None:
        measured = {SHED_TOTAL: gateways.shed_total, REQUEST_S: gateways.request_s, ITL_P99_S: gateways.itl_p99_s}
        stats.update({name: value for name, value in measured.items() if value is not None})
    return stats


def observation(context: ScalingContext) -> Observation:
    """The policy's input. Times are of Ray's wall clock: hosts whose clocks differ much look silent."""
    assert context.current_time is not None, "Serve always tells the time"
    metrics = context.raw_metrics or {}
    loads = (_replica_load(metrics, replica, context.current_time) for replica in context.running_replicas)
    return Observation(
        now=context.current_time,
        num_ready=len(context.running_replicas),
        num_present=context.target_num_replicas,
        replicas=tuple(load for load in loads if load is not None),
        gateways=_gateway_load(metrics, context.running_replicas),
        min_replicas=context.capacity_adjusted_min_replicas,
        max_replicas=context.capacity_adjusted_max_replicas,
    )


def _replica_load(
    metrics: Mapping[str, Mapping[Any, Sequence[Sample]]], replica: Any, now: float
) -> ReplicaLoad | None:
    """None for a replica that has not reported yet."""
    series = [metrics.get(name, {}).get(replica) for name in (RUNNING, WAITING, KV_USAGE, ACCEPTED_TOTAL)]
    running, waiting, kv_usage, accepted = series
    if not (running and waiting and kv_usage and accepted):
        return None
    return ReplicaLoad(
        num_running=running[-1].value,
        num_waiting=waiting[-1].value,
        kv_usage=kv_usage[-1].value,
        requests_per_s=_per_second(accepted),
        age_s=max(now - running[-1].timestamp, 0.0),
    )


def _gateway_load(metrics: Mapping[str, Mapping[Any, Sequence[Sample]]], replicas: Sequence[Any]) -> GatewayLoad | None:
    """Every replica passes on the same picture of all gateways; the newest one counts."""
    told = {replica: series for replica, series in metrics.get(SHED_TOTAL, {}).items() if series}
    newest = max((r for r in replicas if r in told), key=lambda r: told[r][-1].timestamp, default=None)
    if newest is None:
        return None
    at = told[newest][-1].timestamp

    def measured(name: str) -> float | None:
        series = metrics.get(name, {}).get(newest)
        # A value that was not told together with the count is an old one.
        return series[-1].value if series and series[-1].timestamp == at else None

    return GatewayLoad(at, told[newest][-1].value, measured(REQUEST_S), measured(ITL_P99_S))


def _per_second(series: Sequence[Sample]) -> float:
    """Growth of a counter over what is known of it."""
    seconds = series[-1].timestamp - series[0].timestamp
    return max(series[-1].value - series[0].value, 0.0) / seconds if seconds > 0 else 0.0
