"""The autoscaler's metrics, seen from the coordinator.

The policy runs in Serve's controller, where nothing of ours can be scraped. So these are no record of its decisions:
they are what Serve made of them, as its own status says it when it is looked at. "up" and "down" count changes of the
number wanted between two looks, whoever caused them; "hold" counts looks without one. The sentence of a decision stands
in the controller's log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from ops.telemetry.meter import Meter

logger = logging.getLogger(__name__)

LOOK_S = 10.0
LOOK_TIMEOUT_S = 5.0
READY = "RUNNING"
# Of Serve's replica states, those of replicas that it wants: not stopping, not stopped.
WANTED = frozenset({"STARTING", "UPDATING", "RECOVERING", READY, "PENDING_MIGRATION"})


class ScalingWatch:
    """Of the attention tier. Call `note` look by look."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._desired: int | None = None

    def note(self, states: Mapping[str, int]) -> None:
        """states: replicas by state, of `serve.status()`."""
        desired = sum(number for state, number in states.items() if state in WANTED)
        before = desired if self._desired is None else self._desired
        change = "hold" if desired == before else "up" if desired > before else "down"
        self._desired = desired
        self._meter.counter("step35_autoscaler_decisions_total", tier="attention", decision=change).add()
        self._meter.gauge("step35_autoscaler_desired_replicas", tier="attention").set(desired)
        self._meter.gauge("step35_autoscaler_replicas", tier="attention").set(states.get(READY, 0))


async def watch_scaling(meter: Meter, app_name: str, deployment: str, look_s: float = LOOK_S) -> None:
    """Look at Serve's status for ever; its owner cancels it. While the controller does not answer, nothing is new."""
    watch = ScalingWatch(meter)
    while True:
        await asyncio.sleep(look_s)
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                states = await asyncio.to_thread(replica_states, app_name, deployment)
        except (TimeoutError, RayError, RayServeException) as error:
            logger.debug("Serve's status is not known: %s", error)
            continue
        if states:
            watch.note(states)


def replica_states(app_name: str, deployment: str) -> dict[str, int]:
    """Replicas of a deployment by state, in Serve's words; empty if there is no such deployment. Blocks."""
    application = serve.status().applications.get(app_name)
    found = application.deployments.get(deployment) if application is not None else None
    # Strings, although Serve's annotation says an enum.
    return {} if found is None else {str(state): number for state, number in found.replica_states.items()}
