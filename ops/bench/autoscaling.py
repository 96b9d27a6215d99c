"""Autoscaling policies on simulated traffic: ours, and Serve's own by ongoing requests, with equal target and delays.

    python -m ops.bench.autoscaling [--figures FOLDER]

A simulation (`autoscaling_simulation`), so the figures compare policies and promise nothing of a real cluster. Prints a
table and draws one picture for each trace.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cluster.autoscaling import AutoscalerState, AutoscalingConfig, GatewayLoad, Observation, ReplicaLoad, decide
from ops.bench.autoscaling_simulation import Course, Picture, Plant, Policy, Report, Simulation, Trace

LEAST, MOST = 1, 8
CONFIG = AutoscalingConfig(
    max_replicas=MOST, target_sequences=24, itl_target_s=0.048, upscale_delay_s=30, downscale_delay_s=300
)
LOOK_BACK_S = 30  # Serve's: the mean of ongoing requests over so much
HANDLE_TIMEOUT_S = 20  # Serve's: what it has not heard of for so long it counts as no requests
FIGURE_SIZE = (8.0, 8.5)
COLOURS = {"ours": "tab:blue", "Serve": "tab:orange"}

console = Console(width=110)


class Ours:
    """The policy that serves, on the simulation's picture. why: of its last change."""

    def __init__(self, config: AutoscalingConfig) -> None:
        self._config = config
        self._state = AutoscalerState()
        self.why = ""

    def __call__(self, picture: Picture) -> int:
        decision, self._state = decide(self._config, self._state, observed(picture))
        if decision.change != "hold":
            self.why = decision.why
        return decision.replicas


def observed(picture: Picture) -> Observation:
    """As `cluster.scaling_policy` makes one of what Serve knows."""
    newest = max(picture.reports, key=lambda report: report.at, default=None)
    gateways = None
    if newest is not None:
        gateways = GatewayLoad(newest.at, newest.shed_total, newest.request_s, newest.itl_p99_s)
    return Observation(
        now=picture.now,
        num_ready=picture.num_ready,
        num_present=picture.num_present,
        replicas=tuple(_load(report, picture.now) for report in picture.reports),
        gateways=gateways,
        min_replicas=LEAST,
        max_replicas=MOST,
    )


def _load(report: Report, now: int) -> ReplicaLoad:
    return ReplicaLoad(
        report.num_running, report.num_waiting, report.kv_usage, report.requests_per_s, age_s=now - report.at
    )


class ServeDefault:
    """Serve's `replica_queue_length_autoscaling_policy` with its delays, as of Ray 2.60; a test holds them equal."""

    def __init__(self, target: float, upscale_delay_s: float, downscale_delay_s: float) -> None:
        self._target = target
        self._delays = {1: upscale_delay_s, -1: downscale_delay_s}
        self._totals: deque[float] = deque(maxlen=LOOK_BACK_S)
        self._wanted = (0, 0.0)  # (direction, since)

    def __call__(self, picture: Picture) -> int:
        heard = [report for report in picture.reports if picture.now - report.at <= HANDLE_TIMEOUT_S]
        self._totals.append(sum(report.num_running + report.num_waiting for report in heard))
        mean = sum(self._totals) / len(self._totals)
        return self.next(mean, picture.num_ready, picture.num_present, picture.now)

    def next(self, num_requests: float, num_running: int, present: int, now: float) -> int:
        """The number wanted from now on. num_running: replicas that are ready."""
        if num_running == 0:
            return present
        desired = math.ceil(num_running + (num_requests / self._target - num_running))
        direction = (desired > present) - (desired < present)
        if direction == 0:
            self._wanted = (0, 0.0)
            return present
        if self._wanted[0] != direction:
            self._wanted = (direction, now)
        if now - self._wanted[1] + 1e-6 < self._delays[direction]:
            return present
        self._wanted = (0, 0.0)
        return max(desired, 1) if direction < 0 else desired


def traces() -> list[Trace]:
    """A replica at its target takes about 2.7 requests per second."""
    noise = np.exp(np.random.default_rng(7).normal(0.0, 0.35, 720))
    return [
        Trace("step", 6000, lambda second: 12.0 if 600 <= second < 3000 else 1.5),
        Trace("spike", 3600, lambda second: 14.0 if 600 <= second < 780 else 2.0),
        Trace("diurnal", 10800, lambda second: 1.0 + 8.0 * math.sin(math.pi * second / 5400) ** 2),
        # The gateway lets in less than a replica is meant to hold, so that nobody ever queues.
        Trace("shedding", 3600, lambda second: 8.0 if second >= 600 else 1.5, Plant(gateway_places=20)),
        Trace("noisy", 7200, lambda second: 6.0 * noise[second // 10]),
        Trace("outage", 4800, lambda second: 9.0 if second >= 300 else 2.0, silent=(1500, 2400)),
    ]


@dataclass(frozen=True)
class Outcome:
    """One trace under both policies, by the policies' names."""

    trace: Trace
    courses: dict[str, Course]


def compare(trace: Trace) -> Outcome:
    policies: dict[str, Policy] = {
        "ours": Ours(CONFIG),
        "Serve": ServeDefault(CONFIG.target_sequences, CONFIG.upscale_delay_s, CONFIG.downscale_delay_s),
    }
    courses = {name: Simulation(trace, policy, least=LEAST, most=MOST).run() for name, policy in policies.items()}
    return Outcome(trace, courses)


def print_table(outcomes: Sequence[Outcome]) -> None:
    table = Table("trace", "policy", "shed", "wait p99, s", "replica-hours", "most ready", "changes")
    for outcome in outcomes:
        for name, course in outcome.courses.items():
            table.add_row(
                outcome.trace.name,
                name,
                f"{course.share_shed:.2%}",
                f"{course.wait_p99_s:.0f}",
                f"{course.replica_hours:.2f}",
                str(max(course.ready)),
                str(course.num_changes),
            )
    console.print(table)


def draw(outcome: Outcome, path: Path) -> None:
    """Demand, replicas, queue, shed requests and latency over time, of both policies."""
    figure = Figure(figsize=FIGURE_SIZE, layout="constrained", dpi=80)
    demand, replicas, queue, shed, latency = figure.subplots(5, sharex=True)
    minutes = np.arange(outcome.trace.seconds) / 60
    demand.plot(minutes, outcome.courses["ours"].offered, color="black", linewidth=1.0)
    for name, course in outcome.courses.items():
        colour = COLOURS[name]
        alpha = 0.8  # where both agree, both are seen
        replicas.step(minutes, course.desired, color=colour, linestyle=":", linewidth=1.0, label=f"{name}: desired")
        replicas.step(minutes, course.ready, color=colour, linewidth=1.4, label=f"{name}: ready")
        queue.plot(minutes, course.queued, color=colour, linewidth=1.0, alpha=alpha)
        shed.plot(minutes, _smooth(course.shed), color=colour, linewidth=1.0, alpha=alpha)
        latency.plot(minutes, 1e3 * np.array(course.itl_s), color=colour, linewidth=1.0, alpha=alpha)
    latency.axhline(1e3 * (CONFIG.itl_target_s or math.nan), color="grey", linewidth=0.6, linestyle="--")
    labels = ("offered, requests/s", "replicas", "waiting", "shed, requests/s", "inter-token p99, ms")
    for axes, label in zip((demand, replicas, queue, shed, latency), labels, strict=True):
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        _mark_outage(axes, outcome.trace)
    replicas.set_ylim(0, MOST + 0.5)
    queue.set_ylim(top=max(1.0, queue.get_ylim()[1]))
    replicas.legend(loc="upper right", fontsize=8, ncols=2)
    latency.set_xlabel("minutes")
    figure.suptitle(f"simulated: {outcome.trace.name}; a replica loads for {outcome.trace.plant.load_s} s")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _mark_outage(axes: Axes, trace: Trace) -> None:
    start, end = trace.silent
    if end > start:
        axes.axvspan(start / 60, end / 60, color="grey", alpha=0.2, linewidth=0)


def _smooth(values: Sequence[int]) -> NDArray[np.float64]:
    """Mean over ten seconds."""
    return np.convolve(values, np.full(10, 0.1), mode="same")


def main() -> None:
    """Every trace under both policies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, default=Path(__file__).with_name("figures"), help="folder to draw into")
    options = parser.parse_args()
    outcomes = [compare(trace) for trace in traces()]
    print_table(outcomes)
    for outcome in outcomes:
        draw(outcome, options.figures / f"autoscaling-{outcome.trace.name}.png")
    summary = {
        outcome.trace.name: {name: round(course.share_shed, 4) for name, course in outcome.courses.items()}
        for outcome in outcomes
    }
    console.print(json.dumps({"benchmark": "autoscaling", "share_shed": summary}), soft_wrap=True)


if __name__ == "__main__":
    main()
