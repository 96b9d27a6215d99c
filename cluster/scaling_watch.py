"""The autoscaler's metrics, seen from the coordinator. Pure but for the meter.

The policy runs in Serve's controller, where nothing of ours can be scraped. So these are no record of its decisions:
they are what Serve made of them, as its own status says it when it is looked at. "up" and "down" count changes of the
number wanted between two looks, whoever caused them; "hold" counts looks without one. The sentence of a decision stands
in the controller's log.
"""

from __future__ import annotations

from collections.abc import Mapping

from ops.telemetry.meter import Meter

LOOK_S = 10.0
READY = "RUNNING"
# Of Serve's replica states, those of replicas that it wants: not stopping, not stopped.
WANTED = frozenset({"STARTING", "UPDATING", "RECOVERING", READY, "PENDING_MIGRATION"})


class ScalingWatch:
    """Of one tier. Call `note` look by look."""

    def __init__(self, meter: Meter, tier: str = "attention") -> None:
        self._meter = meter
        self._tier = tier
        self._desired: int | None = None

    def note(self, states: Mapping[str, int]) -> None:
        """states: replicas by state, of `serve.status()`."""
        desired = sum(number for state, number in states.items() if state in WANTED)
        change = "hold" if self._desired in (None, desired) else "up" if desired > (self._desired or 0) else "down"
        self._desired = desired
        self._meter.counter("step35_autoscaler_decisions_total", tier=self._tier, decision=change).add()
        self._meter.gauge("step35_autoscaler_desired_replicas", tier=self._tier).set(desired)
        self._meter.gauge("step35_autoscaler_replicas", tier=self._tier).set(states.get(READY, 0))
