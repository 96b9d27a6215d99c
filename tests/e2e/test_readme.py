"""The README's first example, run as it stands against a cluster that serves the model of this repository."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.cluster_process import ROOT, ClusterProcess

SERVED_AT = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def nano_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcess]:
    """What `make serve` starts, on a free port."""
    folder = tmp_path_factory.mktemp("nano")
    cluster = ClusterProcess(folder, ROOT / "ops/nano/checkpoint", model_name="step-nano")
    try:
        cluster.wait_ready()
        yield cluster
    finally:
        cluster.close()


def _blocks(language: str) -> list[str]:
    """The README's fenced blocks of a language; "" for those that name none."""
    parts = re.split(r"^```(.*)\n", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    # Text, opening fence, block, closing fence, text, ...
    return [block for info, block in zip(parts[1::4], parts[2::4], strict=True) if info == language]


def test_the_first_example_prints_what_the_readme_says(nano_cluster: ClusterProcess, tmp_path: Path) -> None:
    """The example runs unchanged but for the port, and its output is the block that follows it."""
    (example,) = _blocks("python")
    assert SERVED_AT in example
    script = tmp_path / "example.py"
    script.write_text(example.replace(SERVED_AT, nano_cluster.url), encoding="utf-8")
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout in _blocks("")


def test_make_serve_serves_it_under_that_name() -> None:
    """What the example asks for is what the Makefile starts."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "STEP35__MODEL_NAME=step-nano" in makefile
