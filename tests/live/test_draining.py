"""A replica that says it drains gets nothing new from a real Ray Serve, and ends what it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.live.cluster_process import ROOT

TIMEOUT_S = 110.0


def test_new_requests_go_elsewhere_and_streams_go_on(tmp_path: Path) -> None:
    """Both answer; then one drains and only the other does, while all streams run to their end; then both again."""
    told = tmp_path / "told.json"
    command = [sys.executable, "-m", "tests.live.draining_process", str(tmp_path / "flag"), str(told)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    story = json.loads(told.read_text())
    assert story["draining"] == story["both"][1:]
    assert story["after"] == story["both"]
    assert story["num_events"] == [60] * 4
    assert {name for names in story["streams"] for name in names} == set(story["both"]), "the draining one had some too"
