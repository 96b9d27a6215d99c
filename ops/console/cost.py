"""What the page costs: the share of a core that the browser takes to show the full model's cluster, second by second.

    python -m ops.console.cost [seconds]

Processor time is read from /proc, so it runs on Linux. The renderer is the process that runs the page; the browser's
other processes are added up beside it, because without a graphics card they draw.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from os import sysconf
from pathlib import Path

from selenium.webdriver import Chrome

from ops.console.browser import headless, sign_in
from ops.console.demo import Demo
from ops.console.synthetic.shape import FULL

SECONDS = 30.0
SETTLE_S = 5.0
PROC = Path("/proc")


@dataclass(frozen=True)
class Cost:
    """Shares of one core. others: of the browser's other processes."""

    renderer: float
    others: float


def main(arguments: list[str]) -> int:
    """Measure and print."""
    seconds = float(arguments[0]) if arguments else SECONDS
    cost = measured(seconds)
    print(
        f"full shape, one state a second, over {seconds:.0f} s: renderer {100 * cost.renderer:.1f} % of a core, "
        f"the browser's other processes {100 * cost.others:.1f} %"
    )
    return 0


def measured(seconds: float) -> Cost:
    """The page in a browser without a window, with a cluster that goes on behind it."""
    began = time.monotonic()
    with Demo(FULL, lambda: int(time.monotonic() - began)) as demo, headless(height=1800) as driver:
        sign_in(driver, demo.url)
        wait = threading.Event()
        wait.wait(SETTLE_S)
        first, first_at = _processor_seconds(driver), time.monotonic()
        wait.wait(seconds)
        last, passed = _processor_seconds(driver), time.monotonic() - first_at
    spent = {kind: (last[kind] - first[kind]) / passed for kind in last}
    return Cost(spent["renderer"], spent["others"])


def _processor_seconds(driver: Chrome) -> dict[str, float]:
    """User and system time of all processes below the driver, the driver itself left out."""
    seconds = {"renderer": 0.0, "others": 0.0}
    for process in _below(driver.service.process.pid):
        kind = "renderer" if b"--type=renderer" in (PROC / str(process) / "cmdline").read_bytes() else "others"
        seconds[kind] += _ticks(process) / sysconf("SC_CLK_TCK")
    return seconds


def _below(parent: int) -> list[int]:
    children = [
        int(child)
        for task in (PROC / str(parent) / "task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return children + [process for child in children for process in _below(child)]


def _ticks(process: int) -> int:
    # The name in parentheses may hold anything; the fields behind it are numbers.
    fields = (PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
