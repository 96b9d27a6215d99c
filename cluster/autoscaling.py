"""Autoscaling of the attention tier: how many replicas a load needs, and when to change to that number. Pure.

What is needed, in replicas, is the greatest of three, over the ready replicas that reported lately:

    sequences  (held + min(shed per second x request seconds, T x ready)) / T, with T = target_sequences and
               held = running + waiting, or at least T x ready while anything is shed
    KV         sum of their KV usage / target_kv_usage
    latency    present x min(p99 of inter-token latency / itl_target_s, 2), only if it is above its target, nothing is
               starting, and the ready replicas are at least half full: else more replicas would not help

Shed requests are demand that no queue shows: who sheds takes the ready replicas for full, whatever these say. As the
same client comes again and again, shed requests count for no more than as many replicas again.

Up: ceil(need), at most twice the present, once more than the present was wanted for `upscale_delay_s` without a break;
then the least number wanted in that time. Down: ceil(need / (1 - hysteresis)), at least half the present, once fewer
were enough for `downscale_delay_s` without a break; then the greatest number wanted in that time. Any shed request, any
replica that is silent and any doubt about the gateways is a break of the latter, and nobody may be waiting at its end.

A downscale that is followed by an upscale without more requests was wrong, however it looked: that number of replicas
is not tried again before there have been fewer requests than it was judged by for all of `downscale_delay_s`. So a
constant load cannot make it oscillate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Of the average of requests per second: long enough to smooth, shorter than most loads of a model.
RATE_TIME_S = 60.0

# The reports of several replicas may lie close together, and nothing of a steady flow of shed requests between them.
SHED_SPAN_S = 10.0

# Below this share of target_sequences, a slow step has another cause than too few attention actors.
HALF_FULL = 0.5

MAX_GROWTH = 2

# A need of 3 computed in floats must not ask for 4.
ROUNDING = 1e-9


class AutoscalingConfig(BaseModel):
    """How many attention actors follow the load, and how fast."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_replicas: int = Field(4, ge=1, description="most attention actors; the fewest are attention.num_replicas")
    target_sequences: float = Field(
        24.0,
        gt=0,
        description="running and waiting sequences of one actor aimed at; below attention.engine.max_running",
    )
    target_kv_usage: float = Field(0.8, gt=0, le=1, description="share of an actor's KV blocks aimed at")
    itl_target_s: float | None = Field(
        None, gt=0, description="p99 of inter-token latency aimed at; None: latency does not count"
    )
    request_s: float = Field(
        30.0, gt=0, description="seconds that a shed request would have taken, while the gateways have measured none"
    )
    upscale_delay_s: float = Field(30.0, ge=0, description="more actors must be needed for this long")
    downscale_delay_s: float = Field(
        1200.0, ge=0, description="fewer actors must be enough for this long; more than twice a load of the weights"
    )
    hysteresis: float = Field(0.2, ge=0.05, le=0.5, description="room that a smaller number of actors must leave")
    stale_after_s: float = Field(
        45.0, ge=20, description="age from which a report does not count; Serve brings one every 10 s, up to 16 s old"
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.upscale_delay_s > self.downscale_delay_s:
            raise ValueError(
                f"upscale_delay_s {self.upscale_delay_s} must be at most downscale_delay_s {self.downscale_delay_s}"
            )
        return self


@dataclass(frozen=True)
class ReplicaLoad:
    """What one ready replica said `age_s` ago. requests_per_s: those it accepted."""

    num_running: float
    num_waiting: float
    kv_usage: float
    requests_per_s: float
    age_s: float


@dataclass(frozen=True)
class GatewayLoad:
    """What the gateways saw, as known at the time `at`.

    shed_total: requests sent away for want of capacity; falls to 0 when who adds them up restarts. request_s: how long
    an answer took. itl_p99_s: of the slowest gateway. None: nothing was measured lately.
    """

    at: float
    shed_total: float
    request_s: float | None = None
    itl_p99_s: float | None = None


@dataclass(frozen=True)
class Observation:
    """Everything a decision may depend on. num_present: ready and starting. replicas: the ready ones that ever
    reported. gateways: None if nothing is known of them."""

    now: float
    num_ready: int
    num_present: int
    replicas: tuple[ReplicaLoad, ...]
    gateways: GatewayLoad | None
    min_replicas: int
    max_replicas: int


@dataclass(frozen=True)
class Window:
    """Since when another number than the present is wanted without a break; replicas: the most cautious one since."""

    since: float
    replicas: int


@dataclass(frozen=True)
class Evidence:
    """So many replicas, judged by so many requests per second: enough, or too few."""

    replicas: int
    requests_per_s: float


@dataclass(frozen=True)
class AutoscalerState:
    """What the next decision must know of the earlier ones. shed_per_s: over the last span of SHED_SPAN_S or longer.

    judged: the last downscale, until it is confirmed or refuted. too_few: what a refuted one has taught.
    """

    growing: Window | None = None
    shrinking: Window | None = None
    decided_at: float | None = None
    requests_per_s: float | None = None
    gateways_at: float | None = None
    shed_total: float = 0.0
    shed_per_s: float = 0.0
    judged: Evidence | None = None
    too_few: Evidence | None = None


@dataclass(frozen=True)
class Decision:
    """replicas: how many there should be. why: a sentence with the numbers."""

    replicas: int
    change: Literal["up", "down", "hold"]
    why: str


class Need(NamedTuple):
    """Replicas that each signal asks for, and what they were computed from."""

    by_sequences: float
    by_kv: float
    by_latency: float
    num_running: float
    num_waiting: float
    num_shed: float

    @property
    def replicas(self) -> float:
        return max(self.by_sequences, self.by_kv, self.by_latency)


def decide(config: AutoscalingConfig, state: AutoscalerState, seen: Observation) -> tuple[Decision, AutoscalerState]:
    """The number of replicas from now on. May be called as often as one likes; times are in seconds of one clock."""
    seen = _without_stale(config, seen)
    present = min(max(seen.num_present, seen.min_replicas), seen.max_replicas)
    if not seen.replicas:
        held = replace(state, growing=None, shrinking=None, decided_at=seen.now)
        why = f"none of {seen.num_ready} ready replicas has reported in the last {config.stale_after_s:g} s"
        return _decision(present, seen, why), held
    state = _noted(state, seen)
    need = needed(config, state, seen)
    doubt = _doubt(state, seen)
    state = replace(
        state,
        growing=_growing(state, seen, need, present),
        shrinking=None if doubt else _shrinking(config, state, seen, need, present),
    )
    replicas, remark = _due(config, state, seen, need, present)
    why = "; ".join(part for part in (_numbers(config, need), doubt, remark) if part)
    return _decision(replicas, seen, why), _after(config, state, replicas - present)


def needed(config: AutoscalingConfig, state: AutoscalerState, seen: Observation) -> Need:
    """By what is known: a lower bound where replicas or gateways are silent."""
    target, gateways = config.target_sequences, seen.gateways
    running = sum(load.num_running for load in seen.replicas)
    waiting = sum(load.num_waiting for load in seen.replicas)
    request_s = (gateways and gateways.request_s) or config.request_s
    shed = min(state.shed_per_s * request_s, target * seen.num_ready) if gateways else 0.0
    held = max(running + waiting, target * seen.num_ready if shed else 0.0)
    return Need(
        by_sequences=(held + shed) / target,
        by_kv=sum(load.kv_usage for load in seen.replicas) / config.target_kv_usage,
        by_latency=_by_latency(config, seen, running / (target * max(seen.num_ready, 1))),
        num_running=running,
        num_waiting=waiting,
        num_shed=shed,
    )


def _without_stale(config: AutoscalingConfig, seen: Observation) -> Observation:
    """Without the reports that are too old to act on."""
    replicas = tuple(load for load in seen.replicas if load.age_s <= config.stale_after_s)
    is_heard = seen.gateways is not None and seen.now - seen.gateways.at <= config.stale_after_s
    return replace(seen, replicas=replicas, gateways=seen.gateways if is_heard else None)


def _by_latency(config: AutoscalingConfig, seen: Observation, fullness: float) -> float:
    latency = seen.gateways.itl_p99_s if seen.gateways else None
    if config.itl_target_s is None or latency is None or latency <= config.itl_target_s:
        return 0.0
    if seen.num_ready < seen.num_present or fullness < HALF_FULL:
        return 0.0
    return seen.num_present * min(latency / config.itl_target_s, MAX_GROWTH)


def _noted(state: AutoscalerState, seen: Observation) -> AutoscalerState:
    """With this observation's rates."""
    average = requests_per_s = sum(load.requests_per_s for load in seen.replicas)
    if state.requests_per_s is not None and state.decided_at is not None:
        share = -math.expm1(-max(seen.now - state.decided_at, 0.0) / RATE_TIME_S)
        average = state.requests_per_s + share * (requests_per_s - state.requests_per_s)
    state = replace(state, decided_at=seen.now, requests_per_s=average)
    gateways = seen.gateways
    if gateways is None:
        return state
    # What was shed before the first report, or before a restart of the counter, is no demand of now.
    if state.gateways_at is None:
        return replace(state, gateways_at=gateways.at, shed_total=gateways.shed_total)
    seconds, num_shed = gateways.at - state.gateways_at, max(gateways.shed_total - state.shed_total, 0.0)
    if seconds < SHED_SPAN_S:
        return state
    return replace(state, gateways_at=gateways.at, shed_total=gateways.shed_total, shed_per_s=num_shed / seconds)


def _doubt(state: AutoscalerState, seen: Observation) -> str:
    """Why fewer replicas might not be enough whatever the queues say; empty if there is no such reason."""
    if len(seen.replicas) < seen.num_ready:
        return f"{seen.num_ready - len(seen.replicas)} of {seen.num_ready} ready replicas are silent"
    if seen.gateways is None:
        return "what the gateways shed is not known"
    if state.shed_per_s > 0:
        return f"the gateways shed {state.shed_per_s:.2f} requests/s"
    return ""


def _growing(state: AutoscalerState, seen: Observation, need: Need, present: int) -> Window | None:
    wanted = min(math.ceil(need.replicas - ROUNDING), MAX_GROWTH * present, seen.max_replicas)
    if wanted <= present:
        return None
    before = state.growing
    if before is None or before.replicas <= present:  # somebody else has changed the number meanwhile
        return Window(seen.now, wanted)
    return Window(before.since, min(before.replicas, wanted))


def _shrinking(
    config: AutoscalingConfig, state: AutoscalerState, seen: Observation, need: Need, present: int
) -> Window | None:
    enough = math.ceil(need.replicas / (1 - config.hysteresis) - ROUNDING)
    wanted = max(enough, _refuted(state) + 1, math.ceil(present / MAX_GROWTH), seen.min_replicas)
    if wanted >= present:
        return None
    before = state.shrinking
    if before is None or before.replicas >= present:
        return Window(seen.now, wanted)
    return Window(before.since, max(before.replicas, wanted))


def _due(
    config: AutoscalingConfig, state: AutoscalerState, seen: Observation, need: Need, present: int
) -> tuple[int, str]:
    """The number to have now, and what it waits for."""
    if state.growing is not None:
        lasted = seen.now - state.growing.since
        if lasted >= config.upscale_delay_s:
            return state.growing.replicas, ""
        return present, f"more are needed for {lasted:.0f} of {config.upscale_delay_s:g} s"
    if state.shrinking is not None:
        lasted = seen.now - state.shrinking.since
        if lasted < config.downscale_delay_s:
            return present, f"fewer are enough for {lasted:.0f} of {config.downscale_delay_s:g} s"
        if need.num_waiting > 0:
            return present, "somebody waits"
        return state.shrinking.replicas, ""
    if present == _refuted(state) + 1:
        return present, f"{present - 1} were too few for no more requests"
    return present, ""


def _refuted(state: AutoscalerState) -> int:
    """Replicas that were once too few for what comes now; 0 if there is no such evidence."""
    if state.too_few is None or (state.requests_per_s or 0.0) < state.too_few.requests_per_s:
        return 0
    return state.too_few.replicas


def _after(config: AutoscalingConfig, state: AutoscalerState, change: int) -> AutoscalerState:
    """The state behind a decision: windows begin anew, and what the change teaches is kept."""
    rate = state.requests_per_s or 0.0
    if change < 0:
        assert state.shrinking is not None, "a downscale comes from a window"
        return replace(state, growing=None, shrinking=None, judged=Evidence(state.shrinking.replicas, rate))
    if change == 0:
        return state
    judged, too_few = state.judged, state.too_few
    if judged is not None and rate <= (1 + config.hysteresis) * judged.requests_per_s:
        too_few = Evidence(judged.replicas, (1 - config.hysteresis) * judged.requests_per_s)
    return replace(state, growing=None, shrinking=None, judged=None, too_few=too_few)


def _decision(replicas: int, seen: Observation, why: str) -> Decision:
    if replicas == seen.num_present:
        return Decision(replicas, "hold", f"hold {replicas}: {why}")
    change: Literal["up", "down"] = "up" if replicas > seen.num_present else "down"
    return Decision(replicas, change, f"{change} from {seen.num_present} to {replicas}: {why}")


def _numbers(config: AutoscalingConfig, need: Need) -> str:
    parts = [
        f"{need.replicas:.2f} replicas are needed: {need.by_sequences:.2f} by sequences ({need.num_running:g} running, "
        f"{need.num_waiting:g} waiting, {need.num_shed:.1f} shed, at {config.target_sequences:g} each)",
        f"{need.by_kv:.2f} by KV",
    ]
    if config.itl_target_s is not None:
        parts.append(f"{need.by_latency:.2f} by latency")
    return ", ".join(parts)
