"""A real Prometheus follows two real exporters: scrapes what is there, shows what vanishes as down, and ends clean."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ops.telemetry.exporter import Exporter, ExporterConfig
from ops.telemetry.exposition import ProcessLabels
from ops.telemetry.recording import RecordingMeter
from ops.telemetry.spec import Owner

TIMEOUT_S = 45.0
NUM_PORTS = 4
ROOT = Path(__file__).parents[2]


@pytest.fixture
def first_port() -> int:
    """Of a run of free ports."""
    for port in range(21000, 40000, 16):
        servers: list[socket.socket] = []
        try:
            servers += [socket.create_server(("127.0.0.1", port + offset)) for offset in range(NUM_PORTS + 1)]
        except OSError:
            continue
        else:
            return port
        finally:
            for server in servers:
                server.close()
    raise AssertionError("no free ports")


@pytest.fixture
def exporters(first_port: int) -> Iterator[list[Exporter]]:
    config = ExporterConfig(port=first_port, num_ports=NUM_PORTS)
    made = []
    for role, member in ((Owner.ATTENTION, "a"), (Owner.EXPERT, "e")):
        meter = RecordingMeter(role)
        if role is Owner.ATTENTION:
            meter.gauge("step35_requests_running").set(3)
        made.append(Exporter(meter, ProcessLabels(role, member, model_name="step-nano"), config))
    for exporter in made:
        exporter.start()
    yield made
    for exporter in made:
        exporter.close()


def test_it_follows_processes_as_they_come_and_go(first_port: int, exporters: list[Exporter], tmp_path: Path) -> None:
    """Two up of four ports, what they record is there, one closes and is down, Ctrl-C ends both programs."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed; it is the Debian package of that name")
    listen = f"127.0.0.1:{first_port + NUM_PORTS}"
    words = [
        "--folder",
        str(tmp_path),
        "--listen",
        listen,
        "--first-port",
        str(first_port),
        "--num-ports",
        str(NUM_PORTS),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "ops.prometheus", *words], cwd=ROOT, text=True, stdout=subprocess.PIPE
    ) as tool:
        try:
            ask = _asker(listen)
            _wait_for(lambda: sorted(ask("up")) == [1.0, 1.0])
            _wait_for(lambda: ask('step35_requests_running{job="step35", role="attention", member="a"}') == [3.0])
            assert ask("count by (model_name) (vllm:num_requests_running{model_name='step-nano'})") == [1.0]
            assert _num_rules(listen) > 20
            exporters[1].close()
            _wait_for(lambda: sorted(ask("up")) == [0.0, 1.0])
            tool.send_signal(signal.SIGINT)
            output, _ = tool.communicate(timeout=TIMEOUT_S)
        finally:
            tool.kill()
    assert tool.returncode == 0
    assert f"http://{listen}/targets" in output
    assert "2 processes are scraped\n" in output
    with pytest.raises(OSError, match="refused"):
        ask("up")


def _asker(listen: str) -> Callable[[str], list[float]]:
    """Values of an expression now."""

    def ask(expression: str) -> list[float]:
        query = urllib.parse.urlencode({"query": expression})
        return [float(sample["value"][1]) for sample in _get(listen, f"/api/v1/query?{query}")["result"]]

    return ask


def _num_rules(listen: str) -> int:
    return sum(len(group["rules"]) for group in _get(listen, "/api/v1/rules")["groups"])


def _get(listen: str, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{listen}{path}", timeout=5) as response:
        data: dict[str, Any] = json.load(response)["data"]
        return data


def _wait_for(is_so: Callable[[], bool]) -> None:
    """Prometheus tells nobody when it has scraped: ask until the deadline."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            if is_so():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, "Prometheus never showed it"
        threading.Event().wait(0.25)
