"""A small Serve application on a Ray of its own, scaled by our policy: the real coordinator, and attention replicas
without a model. `python -m tests.live.scaling_cluster FOLDER` prints one line for each thing it has seen.

What is shed is told as a gateway tells it, to the coordinator; replicas pass it on by `record_autoscaling_stats`. The
options of the deployment are those of `cluster.resources`, but for Serve's period of reports and the delays.
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
from cluster.membership import GatewayReport
from cluster.resources import attention_options, coordinator_options, process_environment
from cluster.scaling_policy import replica_stats
from cluster.scaling_watch import WANTED

APP = "scaling"
STREAM_S = 30.0
DEADLINE_S = 45.0
PERIOD_S = 0.5


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
        self._num_shed = 0

    async def until_ready(self, number: int, *, shed_per_look: int) -> None:
        """Raises TimeoutError."""
        async with asyncio.timeout(DEADLINE_S):
            while replica_states() != {"RUNNING": number}:
                await self._look(shed_per_look)
        say(f"ready: {number}")

    async def until_wanted(self, number: int) -> None:
        """Raises TimeoutError."""
        async with asyncio.timeout(DEADLINE_S):
            while sum(count for state, count in replica_states().items() if state in WANTED) != number:
                await self._look(0)
        say(f"wanted: {number}")

    async def _look(self, num_shed: int) -> None:
        self._num_shed += num_shed
        await self._coordinator.report_gateway("gateway", GatewayReport(self._num_shed, request_s=4.0))
        await asyncio.sleep(PERIOD_S)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def replica_states() -> Mapping[str, int]:
    states = serve.status().applications[APP].deployments[ATTENTION].replica_states
    return {str(getattr(state, "value", state)): count for state, count in states.items() if count}


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
    coordinator = serve.deployment(name=COORDINATOR, **coordinator_options(config).to_dict())(CoordinatorDeployment)
    attention = serve.deployment(name=ATTENTION, **options)(PretendedAttention)
    bound = coordinator.bind(config.to_dict(), asdict(MapShape(1, 4)))
    serve.run(attention.bind(bound), name=APP, route_prefix=None)


async def scale(engine: DeploymentHandle[Any], watcher: Watcher) -> None:
    """From one replica to three because requests are shed, then back to one while streams run on all three."""
    await watcher.until_ready(1, shed_per_look=0)
    await watcher.until_ready(3, shed_per_look=20)
    streams = [asyncio.create_task(drain(engine.options(stream=True).stream.remote(STREAM_S))) for _ in range(6)]
    await watcher.until_wanted(1)
    say(f"stopping with streams: {replica_states().get('STOPPING', 0) > 0}")
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
        say(f"seconds: {time.monotonic() - began_at:.0f}")
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
