"""Two replicas behind the attention deployment's router on a real Ray Serve; writes as JSON who answered when.

Run by `test_draining.py` in a process of its own: `python -m tests.live.draining_process FLAG TOLD`. The replica whose
name is in the file FLAG says that it drains; what happened goes into the file TOLD.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.attention_router import IS_DRAINING
from cluster.config import ClusterConfig
from cluster.resources import attention_options

NUM_CALLS = 12  # one after another; all by chance to one of two: once in 2,048 times
DEADLINE_S = 30.0


class Replica:
    """Streams its name."""

    def __init__(self, flag: str) -> None:
        self._flag = Path(flag)
        self._name = serve.get_replica_context().replica_id.unique_id

    async def generate(self, num_events: int) -> AsyncGenerator[str, None]:
        for _ in range(num_events):
            yield self._name
            await asyncio.sleep(0.1)

    def record_routing_stats(self) -> dict[str, Any]:
        return {IS_DRAINING: self._flag.exists() and self._flag.read_text() == self._name}


async def answered(handle: DeploymentHandle[Any], num_events: int = 1) -> list[str]:
    return [name async for name in handle.options(stream=True).generate.remote(num_events)]


async def names_when(handle: DeploymentHandle[Any], is_met: Callable[[set[str]], bool]) -> list[str]:
    """Who answers a round of calls, once that is as it should be."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            names = {(await answered(handle))[0] for _ in range(NUM_CALLS)}
            if is_met(names):
                return sorted(names)


async def story(handle: DeploymentHandle[Any], flag: Path) -> dict[str, Any]:
    both = await names_when(handle, lambda names: len(names) == 2)
    running = asyncio.gather(*(answered(handle, 60) for _ in range(4)))
    await asyncio.sleep(0.5)
    await asyncio.to_thread(flag.write_text, both[0])
    draining = await names_when(handle, lambda names: names == {both[1]})
    streams = await running
    await asyncio.to_thread(flag.unlink)
    return {
        "both": both,
        "draining": draining,
        "streams": [sorted(set(stream)) for stream in streams],
        "num_events": [len(stream) for stream in streams],
        "after": await names_when(handle, lambda names: len(names) == 2),
    }


def main(flag: Path, told: Path) -> None:
    options = attention_options(ClusterConfig.model_validate({"checkpoint": "/none"}))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        deployment = serve.deployment(
            num_replicas=2,
            ray_actor_options={"num_cpus": 0.1},
            max_ongoing_requests=100,
            request_router_config=dict(options.request_router_config),
        )(Replica)
        handle = serve.run(deployment.bind(str(flag)), route_prefix=None)
        told.write_text(json.dumps(asyncio.run(story(handle, flag))))
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
