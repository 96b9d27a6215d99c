"""CPU time of a tree of processes."""

from __future__ import annotations

import os
import subprocess
import sys

from ops.bench.processes import cpu_seconds

BURN = "import time\nwhile time.process_time() < 0.4: pass\n"
LIVE = BURN + "print('done', flush=True)\ninput()"


def test_children_and_what_they_waited_for_count() -> None:
    """A child that lives and one that has ended, of 0.4 s each; another tree does not count."""
    before = cpu_seconds(os.getpid())
    subprocess.run([sys.executable, "-c", BURN], check=True, timeout=20)
    with subprocess.Popen(
        [sys.executable, "-c", LIVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        # Python's start takes time too; ticks are hundredths of a second.
        both_s, child_s = cpu_seconds(os.getpid()) - before, cpu_seconds(child.pid)
        child.communicate("\n", timeout=20)
    assert both_s > child_s + 0.38
    assert child_s > 0.38
