"""The serve configuration that the chart renders for the CPU demo, deployed on a local Ray, passes `helm test`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.chart.helm import ROOT, Helm
from tests.chart.ports import free_ports, free_range

KEY = "a-key"
TIMEOUT_S = 280


@pytest.mark.timeout(TIMEOUT_S + 20)  # four Ray nodes on two cores take most of it
def test_the_demos_serve_config_runs_as_it_is(helm: Helm, tmp_path: Path) -> None:
    """Only folders differ: what pods have below /etc and /opt is elsewhere here. Nodes carry the chart's labels, the
    processes its environment; Ray's own command deploys, the chart's own script asks, and every process answers scrapes
    in the range of ports that the ClusterConfig says."""
    api, admin, dashboard = free_ports(3)
    metrics = {"port": free_range(8)}
    values = {"gateway": {"port": api}, "admin": {"port": admin}, "monitoring": {"telemetry": {"metrics": metrics}}}
    rendered = helm.template(values)

    def moved(text: str) -> str:
        return text.replace("/etc/step35", str(tmp_path)).replace("/opt/step35/nano", str(ROOT / "ops/nano/checkpoint"))

    (tmp_path / "api-keys").mkdir()
    (tmp_path / "api-keys" / "keys").write_text(f"{KEY}\n")
    (tmp_path / "admin").mkdir()
    (tmp_path / "admin" / "token").write_text("an-operator\n")
    (tmp_path / "cluster.yaml").write_text(moved(yaml.safe_dump(rendered.config)))
    (tmp_path / "serve.yaml").write_text(moved(rendered.service["serveConfigV2"]))

    given = {entry["name"]: entry["value"] for entry in rendered.container("attention")["env"] if "value" in entry}
    environment = {
        "PATH": os.defpath,
        "PYTHONPATH": str(ROOT),
        **{name: value for name, value in given.items() if name != "HOME"},
        "API_KEY": KEY,
        "API_NEEDS_KEY": "true",
    }
    num_experts = rendered.group("experts")["replicas"]
    words = [str(tmp_path), f"http://127.0.0.1:{api}", f"http://127.0.0.1:{dashboard}", str(num_experts)]
    command = [sys.executable, "-m", "tests.chart.local_ray", *words]
    with (tmp_path / "output").open("w") as output:
        running = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = running.wait(TIMEOUT_S)
        finally:
            end(running)
    said = (tmp_path / "output").read_text()
    assert status == 0, said[-4000:]
    assert [line for line in said.splitlines() if line.startswith("ok: ")] == [
        "ok: ready",
        "ok: 401 without a key",
        "ok: a streamed completion",
        "ok: scraped attention, coordinator, expert, expert, gateway",
    ]


def end(running: subprocess.Popen[bytes]) -> None:
    """An interrupt first, upon which it stops its Ray nodes."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if running.poll() is None:
            os.killpg(running.pid, number)
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                continue
