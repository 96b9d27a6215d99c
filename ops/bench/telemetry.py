"""What telemetry costs: two clusters of the nano model side by side, one that tells all and one that tells nothing.

    python -m ops.bench.telemetry [--streams 32] [--rounds 12]

On: every process is scraped each second, every request is traced to a collector, logs are JSON. Off: nobody can scrape,
no spans, plain logs; what the operator's page shows is counted in both. The clusters answer the same batch of streams
in turns, so that both meet the same moments of the machine. Ratios are medians over pairs of neighbouring batches. CPU
time is that of all processes of a cluster while it answers: where cores are scarce, tokens per second follow it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ops.bench.decode import measure
from ops.bench.processes import cpu_seconds
from ops.bench.rebalance import served
from ops.prometheus.targets import ask

PORTS = {"on": (8794, 8795), "off": (8796, 8797)}
FIRST_SCRAPED = 9664
NUM_SCRAPED = 32
SCRAPE_EVERY_S = 1.0
TOKENS, PROMPT_TOKENS = 64, 48

console = Console(width=110)


@dataclass(frozen=True)
class Cluster:
    """pid: of the process that its others descend from."""

    url: str
    pid: int


@dataclass(frozen=True)
class Batch:
    """What one batch of streams took."""

    tokens_per_s: float
    step_ms: float
    cpu_ms_per_token: float


class _Collector(BaseHTTPRequestHandler):
    """Takes spans and forgets them."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """A line for each batch of spans would tell nobody anything."""


@contextmanager
def collector() -> Iterator[str]:
    """Its base URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="collector")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def scraper() -> Iterator[None]:
    """Asks all processes of the cluster that can be asked, as Prometheus would."""
    done = threading.Event()
    ports = range(FIRST_SCRAPED, FIRST_SCRAPED + NUM_SCRAPED)

    def scrape() -> None:
        found = list(ask(ports))
        while not done.wait(SCRAPE_EVERY_S):
            ask(found)

    thread = threading.Thread(target=scrape, name="scraper")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def telemetry_of(name: str, collector_url: str) -> dict[str, object]:
    """The section of the configuration."""
    if name == "off":
        return {"metrics": {"enabled": False}}
    return {
        "metrics": {"port": FIRST_SCRAPED, "num_ports": NUM_SCRAPED, "expert_matrix": True},
        "tracing": {"endpoint": collector_url, "sample_ratio": 1.0},
        "logs": {"format": "json"},
    }


@contextmanager
def both_clusters() -> Iterator[dict[str, Cluster]]:
    """By "on" and "off"."""
    with ExitStack() as stack:
        collector_url = stack.enter_context(collector())
        clusters = {}
        for name, ports in PORTS.items():
            pids: list[int] = []
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            sections = {
                "deterministic": False,
                "telemetry": telemetry_of(name, collector_url),
                "ray": {"app_name": f"bench-telemetry-{name}"},
            }
            url, _ = stack.enter_context(
                served(folder, "manual", 1, ports=ports, sections=sections, on_start=pids.append)
            )
            clusters[name] = Cluster(url, pids[0])
        stack.enter_context(scraper())
        yield clusters


def batch(cluster: Cluster, streams: int) -> Batch:
    """All streams at once, to their ends."""
    before_s = cpu_seconds(cluster.pid)
    row = asyncio.run(measure(cluster.url, streams, TOKENS, PROMPT_TOKENS))
    return Batch(row.tokens_per_s, row.step_ms, 1e3 * (cpu_seconds(cluster.pid) - before_s) / row.tokens)


def pairs(clusters: dict[str, Cluster], streams: int, rounds: int) -> dict[str, list[Batch]]:
    """Batches of both, one right after the other, in an order that changes. The first pair warms up and is left out."""
    batches = defaultdict[str, list[Batch]](list)
    progress = Progress(console=Console(stderr=True))
    with progress:
        for idx in progress.track(range(rounds + 1), description=f"{streams} streams"):
            for name in ("on", "off") if idx % 2 else ("off", "on"):
                batches[name].append(batch(clusters[name], streams))
    return {name: found[1:] for name, found in batches.items()}


def report(batches: dict[str, list[Batch]], streams: int) -> None:
    """A table, and a line for programs."""
    table = Table(title=f"telemetry on and off, {streams} streams, {len(batches['on'])} pairs of batches")
    for column in ("", "off", "on", "on / off", "range"):
        table.add_column(column, justify="right")
    ratios = {}
    for title, name in (
        ("tokens/s", "tokens_per_s"),
        ("step, ms", "step_ms"),
        ("CPU time of a token, ms", "cpu_ms_per_token"),
    ):
        on, off = ([getattr(each, name) for each in batches[key]] for key in ("on", "off"))
        found = [one / other for one, other in zip(on, off, strict=True)]
        spread = f"{min(found):.3f} to {max(found):.3f}"
        table.add_row(title, f"{median(off):.2f}", f"{median(on):.2f}", f"{median(found):.3f}", spread)
        ratios[name] = [round(ratio, 4) for ratio in found]
    console.print(table)
    print(json.dumps({"benchmark": "telemetry", "streams": streams, "ratios": ratios}))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=12, help="pairs of batches")
    options = parser.parse_args()
    with both_clusters() as clusters:
        batches = pairs(clusters, options.streams, options.rounds)
    report(batches, options.streams)


if __name__ == "__main__":
    main()
