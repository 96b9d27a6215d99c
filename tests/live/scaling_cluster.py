"""A small Serve application on a Ray of its own, scaled by our policy: the real coordinator, and attention replicas
without a model. `python -m tests.live.scaling_cluster FOLDER` prints one line for each thing it has seen.

What is shed is told as a gateway tells it, to the coordinator; replicas pass it on by `record_autoscaling_stats`. The
options of the deployment are those of `cluster.resources`, but for Serve's period of reports. The coordinator's metrics
are those of `cluster.scaling_watch`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from actors.messages import LoadReport
from cluster.config import ClusterConfig, export_environment
from cluster.deploy import ATTENTION, COORDINATOR, CoordinatorDeployment, MapShape
from cluster.gateway_load import known_gateway_load
from cluster.handles import RemoteCoordinator
from cluster.membership import ProcessReport
from cluster.resources import attention_options, coordinator_options, process_environment
from cluster.scaling_policy import replica_stats
from cluster.scaling_watch import WANTED, replica_states, watch_scaling
from ops.telemetry.plain import PlainMetrics, plain_metrics
from ops.telemetry.recording import RecordingMeter
from ops.telemetry.spec import Owner

APP = "scaling"
STREAM_S = 30.0
DEADLINE_S = 45.0
PERIOD_S = 0.5


class WatchedCoordinator(CoordinatorDeployment):
    """The coordinator, looking at Serve more often than it does elsewhere."""

    def __init__(self, fields: Mapping[str, Any], shape: Mapping[str, Any]) -> None:
        super().__init__(fields, shape)
        self._scaling_meter = RecordingMeter(Owner.COORDINATOR)
        watch = watch_scaling(self._scaling_meter, APP, ATTENTION, look_s=PERIOD_S)
        self._watching = asyncio.get_running_loop().create_task(watch)

    async def scaling_metrics(self) -> PlainMetrics:
        return plain_metrics(self._scaling_meter.families())


class PretendedAttention:
    """As `AttentionDeployment` publishes its numbers; all there is to do is one kind of stream."""

    def __init__(self, coordinator: DeploymentHandle[Any]) -> None:
        self._coordinator = RemoteCoordinator(coordinator, 5.0)
        self._num_running = 0

    async def stream(self, seconds: float) -> AsyncGenerator[int, None]:
        """A number every tenth of a second."""
        self._num_running += 1
        try:
            for number in range(int(10 * seconds)):
                await asyncio.sleep(0.1)
                yield number
        finally:
            self._num_running -= 1

    async def record_autoscaling_stats(self) -> dict[str, float]:
        load = LoadReport(self._num_running, 0, 0, 0.1, 0)
        return replica_stats(load, 0, await known_gateway_load(self._coordinator))


class Watcher:
    """Sheds as told, looks at Serve's status, and says what changed."""

    def __init__(self, coordinator: RemoteCoordinator) -> None:
        self._coordinator = coordinator
        self._meter = RecordingMeter(Owner.GATEWAY)

    async def until_ready(self, number: int, *, shed_per_look: int) -> None:
        """Raises TimeoutError."""
        async with asyncio.timeout(DEADLINE_S):
            while states() != {"RUNNING": number}:
                await self._look(shed_per_look)
        say(f"ready: {number}")

    async def until_wanted(self, number: int) -> None:
        """Raises TimeoutError."""
        async with asyncio.timeout(DEADLINE_S):
            while sum(count for state, count in states().items() if state in WANTED) != number:
                await self._look(0)
        say(f"wanted: {number}")

    async def _look(self, num_shed: int) -> None:
        self._meter.counter("step35_requests_shed_total", reason="concurrency").add(num_shed)
        self._meter.histogram("step35_request_latency_seconds").record(4.0)
        metrics = plain_metrics(self._meter.families())
        await self._coordinator.report_process(ProcessReport("gateway", "gateway", "host", None, metrics))
        await asyncio.sleep(PERIOD_S)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def states() -> Mapping[str, int]:
    return {state: count for state, count in replica_states(APP, ATTENTION).items() if count}


def configure(folder: Path) -> ClusterConfig:
    scaling = {"max_replicas": 3, "target_sequences": 10, "upscale_delay_s": 2, "downscale_delay_s": 6}
    return ClusterConfig.model_validate(
        {
            "checkpoint": str(folder),
            "experts": {"ep_size": 1},
            "attention": {"autoscaling": scaling, "resources": {"num_cpus": 0}},
            "admin": {"enabled": False, "token_file": str(folder / "token")},
            "control": {"drain_timeout_s": 600},
        }
    )


def deploy(config: ClusterConfig) -> None:
    """Serve sends reports every 10 s; a deprecated option still shortens that, for this test alone."""
    options = attention_options(config).to_dict()
    options["autoscaling_config"] |= {"metrics_interval_s": 1.0, "look_back_period_s": 5.0}
    coordinator = serve.deployment(name=COORDINATOR, **coordinator_options(config).to_dict())(WatchedCoordinator)
    attention = serve.deployment(name=ATTENTION, **options)(PretendedAttention)
    bound = coordinator.bind(config.to_dict(), asdict(MapShape(1, 4)))
    serve.run(attention.bind(bound), name=APP, route_prefix=None)


async def scale(engine: DeploymentHandle[Any], watcher: Watcher) -> None:
    """From one replica to three because requests are shed, then back to one while streams run on all three."""
    await watcher.until_ready(1, shed_per_look=0)
    await watcher.until_ready(3, shed_per_look=20)
    streams = [asyncio.create_task(drain(engine.options(stream=True).stream.remote(STREAM_S))) for _ in range(6)]
    await watcher.until_wanted(1)
    say(f"stopping with streams: {states().get('STOPPING', 0) > 0}")
    numbers = await asyncio.gather(*streams)
    say(f"whole streams: {sum(count == int(10 * STREAM_S) for count in numbers)}")
    await watcher.until_ready(1, shed_per_look=0)


async def drain(stream: Any) -> int:
    return sum([1 async for _ in stream])


def main(folder: Path) -> None:
    config = configure(folder)
    export_environment(process_environment(config))
    ray.init(num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, logging_level=logging.WARNING)
    try:
        began_at = time.monotonic()
        deploy(config)
        coordinator = RemoteCoordinator(serve.get_deployment_handle(COORDINATOR, APP), 5.0)
        asyncio.run(scale(serve.get_deployment_handle(ATTENTION, APP), Watcher(coordinator)))
        metrics = serve.get_deployment_handle(COORDINATOR, APP).scaling_metrics.remote().result(timeout_s=5)
        decisions = {labels[1]: int(count) for labels, count in metrics["step35_autoscaler_decisions_total"]}
        say(f"seen: up {decisions['up']}, down {decisions['down']}")
        say(f"desired: {metrics['step35_autoscaler_desired_replicas'][0][1]:g}")
        say(f"seconds: {time.monotonic() - began_at:.0f}")
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
