"""A Ray cluster on this machine with the nodes that the chart's pods would be, and the chart's applications on it.

`python -m tests.chart.local_ray FOLDER API DASHBOARD RANKS` deploys FOLDER/serve.yaml with Ray's own command, waits for
/ready, runs the script of `helm test`, and asks the ports of FOLDER/cluster.yaml for metrics. A process of its own,
because Ray's nodes must end with it.
"""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from ray.cluster_utils import Cluster

from cluster.config import load_config
from ops.telemetry.exporter import ExporterConfig
from tests.chart.helm import CHART

STORE_BYTES = 80 * 2**20
LOOK_PERIOD_S = 1.0
ROLE = re.compile(r'^step35_telemetry_scrapes_total\{.*role="(\w+)"', re.MULTILINE)


def main(folder: Path, api: str, dashboard: str, num_experts: int) -> int:
    """Exit status of the first thing that fails."""
    port = int(dashboard.rsplit(":", 1)[1])
    options = {"object_store_memory": STORE_BYTES, "include_dashboard": True, "dashboard_host": "127.0.0.1"}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**options, "num_cpus": 0, "labels": {"step35/tier": "head"}, "dashboard_port": port},
    )
    try:
        for tier in ["attention", *["experts"] * num_experts]:
            cluster.add_node(num_cpus=1, labels={"step35/tier": tier}, object_store_memory=STORE_BYTES)
        binaries = Path(sys.executable).parent
        deployed = subprocess.run([binaries / "serve", "deploy", folder / "serve.yaml", "-a", dashboard])
        if deployed.returncode:
            return deployed.returncode
        wait_ready(f"{api}/ready", time.monotonic() + 150)
        checked = subprocess.run([sys.executable, CHART / "files" / "check_api.py", api])
        roles = sorted(scraped(load_config(folder / "cluster.yaml").telemetry.metrics))
        sys.stdout.write(f"ok: scraped {', '.join(roles)}\n")
        sys.stdout.flush()
        return checked.returncode
    finally:
        subprocess.run([binaries / "serve", "status", "-a", dashboard])
        cluster.shutdown()


def scraped(metrics: ExporterConfig) -> Iterator[str]:
    """The role of each process that answers as Prometheus would ask it."""
    for port in range(metrics.port, metrics.port + metrics.num_ports):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                yield from ROLE.findall(answer.read().decode())
        except OSError:
            continue  # a port that no process has taken


def wait_ready(url: str, deadline: float) -> None:
    """Returns late rather than never: the check that follows says what is wrong."""
    waiting = threading.Event()
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (OSError, http.client.HTTPException):
            waiting.wait(LOOK_PERIOD_S)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
