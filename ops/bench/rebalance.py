"""What users and experts feel of live rebalancing: a cluster under traffic whose domain changes every minute.

    python -m ops.bench.rebalance [--minutes 6] [--streams 16] [--figure FILE.svg]

Starts `step35 serve` twice on the nano model, one attention actor and eight expert ranks, deterministic: first with the
balancer off, then with it on, under the same questions. Speaks HTTP only. Every greedy answer of the second run must be
that of the first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
import yaml
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ops.bench.decode import wait_ready
from ops.bench.domains import DOMAINS, prompts
from ops.bench.traffic import Answer, Schedule, Traffic, differing_answers, percentile

CHECKPOINT = Path(__file__).parents[1] / "nano" / "checkpoint"
LOOK_PERIOD_S = 1.0
NUM_PROMPTS = 200
MAX_TOKENS = 160
SETTLE_S = 60.0  # the minute before a rebalance, to compare with
PORT, ADMIN_PORT = 8790, 8791
ORDER = ("text", "arithmetic", "tools")

console = Console(width=110)


@dataclass(frozen=True)
class Look:
    """The admin route's answer at one moment of time.monotonic, and at one of time.time."""

    at: float
    wall: float
    status: Mapping[str, Any]


@dataclass
class Run:
    """One cluster's life under traffic. began_at: of the traffic, on time.monotonic."""

    mode: str
    began_at: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)

    @property
    def num_failed(self) -> int:
        return sum(answer.error is not None for answer in self.answers)

    def gaps(self, start: float, end: float) -> list[float]:
        """Seconds between two chunks of a stream, of chunks that came within this time."""
        return [gap for answer in self.answers for at, gap in answer.gaps if start <= at < end]


@dataclass(frozen=True)
class Effect:
    """One rebalance as its users felt it. before, during: (gap p50, gap p99, step p50, step p99) in milliseconds."""

    record: Mapping[str, Any]
    start: float
    end: float
    before: tuple[float, float, float, float]
    during: tuple[float, float, float, float]


@contextlib.contextmanager
def served(
    folder: Path,
    mode: str,
    slots: int,
    *,
    ports: tuple[int, int] = (PORT, ADMIN_PORT),
    sections: Mapping[str, object] | None = None,
    on_start: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[str, httpx.Client]]:
    """A cluster of our own: yields its URL and a client of its admin route. ports: of the gateway and of that route.
    sections: of its configuration, in place of these. on_start: told the process that its others descend from."""
    port, admin_port = ports
    token = folder / "admin.token"
    token.write_text(secrets.token_urlsafe(32) + "\n")
    token.chmod(0o600)
    fields = {
        "checkpoint": str(CHECKPOINT),
        "deterministic": True,
        "gateway": {"port": port},
        "admin": {"port": admin_port, "token_file": str(token)},
        "experts": {"num_redundant_slots": slots},
        "balancing": {"mode": mode, "interval_s": 20, "half_life_s": 15, "horizon_s": 60},
        "ray": {"app_name": f"bench-{mode}"},
        **(sections or {}),
    }
    config = folder / f"{mode}.yaml"
    config.write_text(yaml.safe_dump(fields))
    server = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", "serve", "--config", str(config)], stdout=sys.stderr
    )
    on_start(server.pid)
    url, key = f"http://127.0.0.1:{port}", {"authorization": f"Bearer {token.read_text().strip()}"}
    try:
        wait_ready(url, server)
        with httpx.Client(base_url=f"http://127.0.0.1:{admin_port}", headers=key, timeout=10) as admin:
            yield url, admin
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=90)


def observe(mode: str, folder: Path, options: argparse.Namespace) -> Run:
    """One cluster under the schedule, looked at every second."""
    run = Run(mode)
    texts = {domain: prompts(CHECKPOINT, domain, NUM_PROMPTS) for domain in DOMAINS}
    with served(folder, mode, options.slots) as (url, admin), Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"balancer {mode}", total=60 * options.minutes)
        traffic = Traffic(url, texts, Schedule(ORDER, options.domain_s), options.streams, MAX_TOKENS)
        done = threading.Event()
        looker = threading.Thread(target=_look, args=(admin, run.looks, done, lambda: progress.advance(bar, 1)))
        looker.start()
        try:
            asyncio.run(traffic.run(60 * options.minutes))
        finally:
            done.set()
            looker.join()
    run.began_at, run.answers = traffic.began_at, traffic.answers
    return run


def _look(admin: httpx.Client, looks: list[Look], done: threading.Event, tick: Any) -> None:
    while not done.wait(LOOK_PERIOD_S):
        response = admin.get("/admin/experts")
        response.raise_for_status()
        looks.append(Look(time.monotonic(), time.time(), response.json()))
        tick()


def effects(run: Run) -> list[Effect]:
    """Every rebalance that was finished, from the records that the cluster keeps."""
    if not run.looks:
        return []
    last = run.looks[-1]
    found = []
    for record in last.status["balancer"]["history"]:
        if record["outcome"] != "done":
            continue
        start = last.at - (last.wall - record["started_at"])
        end = start + max(record["seconds"], LOOK_PERIOD_S)
        before, during = (start - SETTLE_S, start), (start, end)
        found.append(Effect(record, start, end, _felt(run, *before), _felt(run, *during)))
    return found


def _felt(run: Run, start: float, end: float) -> tuple[float, float, float, float]:
    gaps = run.gaps(start, end)
    steps = [look.status["step_p50_ms"] for look in run.looks if start <= look.at <= end + LOOK_PERIOD_S]
    slow = [look.status["step_p99_ms"] for look in run.looks if start <= look.at <= end + LOOK_PERIOD_S]
    return (
        1e3 * percentile(gaps, 0.5),
        1e3 * percentile(gaps, 0.99),
        fmean(steps) if steps else float("nan"),
        fmean(slow) if slow else float("nan"),
    )


def print_balance(runs: Sequence[Run], schedule: Schedule) -> None:
    """Balancedness and distinct experts over time, per run."""
    table = Table("seconds", "domain", *(f"{run.mode}: {what}" for run in runs for what in ("balancedness", "busiest")))
    longest = max(look.at - run.began_at for run in runs for look in run.looks)
    period_s = schedule.seconds / 2
    for number in range(int(longest / period_s)):
        start, end = number * period_s, (number + 1) * period_s
        cells = [cell for run in runs for cell in _balance_cells(run, start, end)]
        table.add_row(f"{start:.0f}-{end:.0f}", schedule.domain_at(start), *cells)
    console.print(table)


def _balance_cells(run: Run, start: float, end: float) -> tuple[str, str]:
    looks = [look.status for look in run.looks if start <= look.at - run.began_at < end]
    if not looks:
        return "-", "-"
    busiest = fmean(max(layer["rank_experts"]) for status in looks for layer in status["layers"])
    return f"{fmean(status['balancedness'] for status in looks):.3f}", f"{busiest:.2f}"


def print_effects(run: Run) -> None:
    """Each rebalance against the minute before it."""
    table = Table(
        "at, s", "trigger", "moves", "stages", "took, s", "gap p50 / p99, ms", "step p50 / p99, ms", "gap p99, x"
    )
    for effect in effects(run):
        record, before, during = effect.record, effect.before, effect.during
        table.add_row(
            f"{effect.start - run.began_at:.0f}",
            record["trigger"],
            str(record["num_moves"]),
            str(record["num_stages"]),
            f"{record['seconds']:.2f}",
            f"{before[0]:.1f} / {before[1]:.1f} -> {during[0]:.1f} / {during[1]:.1f}",
            f"{before[2]:.1f} / {before[3]:.1f} -> {during[2]:.1f} / {during[3]:.1f}",
            f"{during[1] / before[1]:.2f}",
        )
    console.print(table)


def draw(runs: Sequence[Run], path: Path, domain_s: float) -> None:
    """Balancedness over time, with the domain changes and the rebalances."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        points = [(look.at - run.began_at, look.status["balancedness"]) for look in run.looks]
        axes.plot(*zip(*points, strict=True), label=f"balancer {run.mode}", linewidth=1.4)
    for effect in effects(runs[-1]):
        axes.axvspan(effect.start - runs[-1].began_at, effect.end - runs[-1].began_at, color="tab:orange", alpha=0.4)
    seconds = max(look.at - run.began_at for run in runs for look in run.looks)
    for number in range(int(seconds / domain_s) + 1):
        axes.axvline(number * domain_s, color="grey", linewidth=0.6)
        axes.text(number * domain_s + 1, 1.0, ORDER[number % len(ORDER)], va="top", fontsize=8, color="grey")
    axes.set_xlabel("seconds; grey: another domain, orange: a rebalance")
    axes.set_ylabel("balancedness of EP ranks")
    axes.set_ylim(top=1.01)
    axes.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def main() -> None:
    """Both runs, compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0, help="traffic of each run")
    parser.add_argument("--domain-s", type=float, default=60.0, help="seconds of each domain")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--slots", type=int, default=2, help="redundant slots of each rank and layer")
    parser.add_argument("--figure", type=Path, default=Path(__file__).with_name("figures") / "rebalance.svg")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [observe(mode, Path(folder), options) for mode in ("off", "auto")]
    print_balance(runs, Schedule(ORDER, options.domain_s))
    print_effects(runs[-1])
    differing = differing_answers([run.answers for run in runs])
    asked = {answer.question for answer in runs[0].answers} & {answer.question for answer in runs[1].answers}
    for run in runs:
        gaps = run.gaps(run.began_at, float("inf"))
        console.print(
            f"balancer {run.mode}: {len(run.answers)} requests, {run.num_failed} failed, "
            f"gap p50 {1e3 * percentile(gaps, 0.5):.1f} ms, p99 {1e3 * percentile(gaps, 0.99):.1f} ms"
        )
    console.print(f"{len(asked)} questions were asked in both runs; {len(differing)} of them got another answer")
    draw(runs, options.figure, options.domain_s)
    summary = {"benchmark": "rebalance", "failed": [run.num_failed for run in runs], "differing": len(differing)}
    console.print(json.dumps(summary), soft_wrap=True)
    if differing or any(run.num_failed for run in runs):
        sys.exit(1)


if __name__ == "__main__":
    main()
