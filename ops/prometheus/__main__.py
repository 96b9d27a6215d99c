"""Starts a real Prometheus beside a cluster on this machine, and keeps its targets up to date until Ctrl-C.

python -m ops.prometheus [--folder FOLDER] [--listen HOST:PORT]
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from ops.prometheus.errors import PrometheusError
from ops.prometheus.scrape_files import ScrapeFiles
from ops.prometheus.server import PrometheusServer, find_binary
from ops.prometheus.targets import Targets, TargetTable, ask
from ops.telemetry.exporter import ExporterConfig

POLL_S = 5.0
EXPORTER = ExporterConfig()

DESCRIPTION = """\
A Prometheus for the cluster that `make serve` runs on this machine. It scrapes every process each 5 seconds and
evaluates the alerts of ops/alerts. Processes are found by asking the ports that they may listen on, so it can be
started before or after the cluster and follows every restart; one that vanishes stays a target for 5 minutes, as down.

Needs the program prometheus on the PATH, such as the Debian package of that name has. Nothing else is installed and
no configuration of the machine is touched. Ctrl-C ends Prometheus too.
"""
EPILOG = """\
examples:
  python -m ops.prometheus                         data in a temporary folder, gone afterwards
  python -m ops.prometheus --folder ~/step35-data  data that the next start finds again
  python -m ops.prometheus --listen 127.0.0.1:9091 where another one has port 9090

To see the dashboards, start Grafana, add this Prometheus as a data source, and import ops/dashboards/json/*.json.
Load of every layer and expert needs telemetry.metrics.expert_matrix in the cluster's configuration.

Exit status: 0 after Ctrl-C, 1 when Prometheus cannot be started or dies, 2 when the command line is wrong.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Until a signal. Exit status 1 for a failure that was told."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        exporters = ExporterConfig(port=options.first_port, num_ports=options.num_ports)
    except ValidationError as error:
        parser.error(f"--first-port or --num-ports: {error.errors()[0]['msg']}")
    stop = threading.Event()
    _stop_on_signals(stop)
    try:
        with _folder(options.folder) as folder:
            _run(folder, options.listen, exporters, stop)
    except PrometheusError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _run(folder: Path, listen: tuple[str, int], exporters: ExporterConfig, stop: threading.Event) -> None:
    """Raises PrometheusError."""
    files, (host, port) = ScrapeFiles(folder), listen
    files.write_config()
    with PrometheusServer(find_binary(), files.config, folder, host, port) as server:
        _say(_ready_message(f"http://{host}:{port}", folder))
        _follow(files, range(exporters.port, min(exporters.port + exporters.num_ports, 65536)), server, stop)
        _say("stopping Prometheus")


def _follow(files: ScrapeFiles, ports: Sequence[int], server: PrometheusServer, stop: threading.Event) -> None:
    """Rewrite the lists of targets whenever they change. Raises PrometheusFailed."""
    table, written, said = TargetTable(), Targets(), ""
    while not stop.is_set():
        server.check()
        answers = ask(ports)
        targets = table.update(answers, time.monotonic())
        if targets != written:
            files.write_targets(targets)
            written = targets
        text = _targets_message(targets, num_silent=len(targets.metrics) - len(answers))
        if text != said:
            _say(text)
            said = text
        stop.wait(POLL_S)


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is None:
        with tempfile.TemporaryDirectory(prefix="step35-prometheus-") as folder:
            yield Path(folder)
    else:
        given.mkdir(parents=True, exist_ok=True)
        yield given.absolute()


def _ready_message(url: str, folder: Path) -> str:
    return (
        f"Prometheus: {url}   (files in {folder}; Ctrl-C ends it)\n"
        f"  what is scraped   {url}/targets\n"
        f"  alerts            {url}/alerts\n"
        f"  a first graph     {url}/graph?g0.tab=0&g0.expr=sum(rate(step35_completion_tokens_total%5B1m%5D))"
    )


def _targets_message(targets: Targets, num_silent: int) -> str:
    silent = f", {num_silent} of them silent" if num_silent else ""
    matrix = ", with the load of every expert" if targets.matrix else ""
    return f"{len(targets.metrics)} processes are scraped{silent}{matrix}"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _stop_on_signals(stop: threading.Event) -> None:
    def handle(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ops.prometheus",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--folder", type=Path, help="keep configuration, data and log here; without it, in a temporary folder"
    )
    parser.add_argument(
        "--listen",
        type=_address,
        default=("127.0.0.1", 9090),
        metavar="HOST:PORT",
        help="where Prometheus answers; 127.0.0.1:9090 without it. It has no password",
    )
    parser.add_argument(
        "--first-port",
        type=int,
        default=EXPORTER.port,
        metavar="PORT",
        help=f"first port that processes may be scraped at; {EXPORTER.port} without it, as telemetry.metrics.port",
    )
    parser.add_argument(
        "--num-ports",
        type=int,
        default=EXPORTER.num_ports,
        metavar="N",
        help=f"ports from the first on; {EXPORTER.num_ports} without it, as telemetry.metrics.num_ports",
    )
    return parser


def _address(text: str) -> tuple[str, int]:
    """Raises ArgumentTypeError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"HOST:PORT, as 127.0.0.1:9090; got {text!r}")
    return host, int(port)


if __name__ == "__main__":
    sys.exit(main())
