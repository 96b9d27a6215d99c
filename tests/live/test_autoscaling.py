"""Ray Serve scales the attention deployment by our policy: up because gateways shed, down without cutting a stream."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.cluster_process import ROOT

TIMEOUT_S = 140


@pytest.mark.timeout(TIMEOUT_S + 30)  # two delays of the policy, and a Ray cluster's start and end
def test_from_one_to_three_and_back(tmp_path: Path) -> None:
    """Nothing runs and nothing waits: only what is shed can have asked for the second and third replica. Streams that
    run on replicas which are taken away come to their end."""
    with (tmp_path / "output").open("w") as output:
        command = [sys.executable, "-m", "tests.live.scaling_cluster", str(tmp_path)]
        running = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = running.wait(TIMEOUT_S)
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait(10)
    said = (tmp_path / "output").read_text()
    assert status == 0, said[-6000:]
    seen = [
        line
        for line in said.splitlines()
        if line.startswith(("ready", "wanted", "stopping", "whole", "seen", "desired"))
    ]
    assert seen == [
        "ready: 1",
        "ready: 3",
        "wanted: 1",
        "stopping with streams: True",
        "whole streams: 6",
        "ready: 1",
        "seen: up 2, down 2",
        "desired: 1",
    ]
