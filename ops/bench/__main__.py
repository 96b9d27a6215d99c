"""Runs the benchmarks one after another and adds what they print to RESULTS.md, under the date and the machine.

    python -m ops.bench [NAME ...]

Knows how to run a benchmark and where it was run, not what it measures. A benchmark that fails is not recorded.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
DEADLINE_S = 1800.0

# Title of the recorded section -> module and arguments.
BENCHMARKS: dict[str, Sequence[str]] = {
    "parity": ("tests.fakes.parity",),
    "exactness": ("pytest", "-q", "tests/ranks/test_split_equals_local.py"),
    "exchange-shm": ("ops.bench.exchange", "--transport", "shm", "--responder", "native"),
    "exchange-shm-python": ("ops.bench.exchange", "--transport", "shm", "--responder", "python"),
    "exchange-gloo": ("ops.bench.exchange", "--transport", "gloo", "--exchanges", "200", "--repeats", "3"),
    "kernels": ("ops.bench.kernels",),
    "memory": ("ops.bench.memory",),
    "decode": ("ops.bench.decode",),
    "speculation": ("ops.bench.speculation",),
    "lossless": ("ops.bench.lossless",),
    "monitor": ("ops.bench.monitor",),
    "dispatch-plan": ("ops.bench.dispatch_plan",),
    "placement": ("ops.bench.placement",),
    "rebalance": ("ops.bench.rebalance",),
    "telemetry": ("ops.bench.telemetry",),
    "console": ("ops.console.cost",),
    "scaling": ("ops.bench.scaling", "--figure", "ops/bench/figures/scaling.svg"),
    "load": ("ops.bench.load", "--rates", "0.5", "1", "2", "4", "--figure", "ops/bench/figures/load.png"),
    "forecast": ("ops.bench.forecast",),
    "autoscaling": ("ops.bench.autoscaling",),
}


def main(names: Sequence[str]) -> int:
    """Run the named benchmarks, all without names. Exit status 1 if one failed, 2 for an unknown name."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"unknown benchmark {', '.join(unknown)}; known: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    outputs = {name: _run(name) for name in names or BENCHMARKS}
    done = {name: output for name, output in outputs.items() if output is not None}
    if done:
        with RESULTS.open("a", encoding="utf-8") as results:
            results.write(section(datetime.now(UTC), machine_facts(), done))
        print(f"recorded {', '.join(done)} in {RESULTS}")
    return 0 if len(done) == len(outputs) else 1


def section(now: datetime, facts: Sequence[str], outputs: dict[str, str]) -> str:
    """The Markdown that records one run. outputs: what each benchmark printed."""
    lines = ["", f"## {now:%Y-%m-%d %H:%M} UTC", "", *(f"- {fact}" for fact in facts)]
    for name, output in outputs.items():
        command = " ".join(("python", "-m", *BENCHMARKS[name]))
        lines += ["", f"### {name}", "", "```", f"$ {command}", *output.strip().splitlines(), "```"]
    return "\n".join(lines) + "\n"


def machine_facts() -> list[str]:
    """What a reader must know to compare: processor, memory, kernel, versions, commit, and how busy it was."""
    return [
        f"{_proc_field('/proc/cpuinfo', 'model name')}, {len(os.sched_getaffinity(0))} cores, "
        f"{int(_proc_field('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.0f} GiB",
        f"Linux {platform.release()}, Python {platform.python_version()}, "
        f"torch {version('torch')}, ray {version('ray')}",
        f"commit {_commit()}, load average at the end of the run {os.getloadavg()[0]:.1f}",
        f"ten million additions in a Python loop took {_loop_seconds():.2f} s at the end of the run",
    ]


def _loop_seconds() -> float:
    """How fast a core is just now: on a shared host it may be a third of what it was an hour ago."""
    start, total = time.perf_counter(), 0
    for number in range(10**7):
        total += number
    return time.perf_counter() - start


def _run(name: str) -> str | None:
    """The benchmark's output, shown while it comes; None if it failed or ran past the deadline."""
    print(f"== {name}", flush=True)
    argv = [sys.executable, "-m", *BENCHMARKS[name]]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        deadline = threading.Timer(DEADLINE_S, process.kill)
        deadline.start()
        try:
            output = "".join(_echo(process))
        finally:
            deadline.cancel()
    if process.returncode != 0:
        print(f"{name} failed with exit status {process.returncode}", file=sys.stderr)
        return None
    return output


def _echo(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None, "the benchmark was started with a pipe"
    for line in process.stdout:
        print(line, end="", flush=True)
        yield line


def _proc_field(path: str, field: str) -> str:
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return "unknown"


def _commit() -> str:
    """Short hash of the checkout, with a mark if files differ from it."""
    git = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty=, with changes", "--exclude=*"]
    done = subprocess.run(git, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
