"""A name server that never answers delays a bundle by a few seconds and does not keep its members apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.config import ClusterConfig
from cluster.resources import process_environment

AS_ROOT = ["unshare", "--mount", "--net"]
AS_USER = ["unshare", "--user", "--map-root-user", "--mount", "--net"]
TIMEOUT_S = 60


def test_members_meet(tmp_path: Path) -> None:
    """With the environment of a cluster's processes. Needs namespaces of its own."""
    unshare = next(filter(_works, (AS_ROOT, AS_USER)), None)
    if unshare is None:
        pytest.skip("this user may not make namespaces")
    variables = process_environment(ClusterConfig(checkpoint=tmp_path))
    environment = ["env", *(f"{name}={value}" for name, value in variables.items())]
    run = subprocess.run(
        [*unshare, *environment, sys.executable, "-m", "tests.ranks.silent_name_server", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 12.0


def _works(unshare: list[str]) -> bool:
    return not subprocess.run([*unshare, "true"], capture_output=True, timeout=TIMEOUT_S, check=False).returncode
