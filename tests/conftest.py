"""What every test gets: the marker and time-out of its tier, a seed made from its own id, one torch thread.

Knows nothing of what is tested. The tier of a test is the first folder below `tests`.
"""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.config import export_environment

TESTS = Path(__file__).parent
FAST_TIERS = ("unit", "contract")
FAST_TIMEOUT_S = 20
SLOW_TIMEOUT_S = 120
TIERS = (*FAST_TIERS, "ranks", "live", "gpu", "e2e", "chart", "console")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--fail-on-skip` is what CI runs with: a test that did not run proves nothing."""
    parser.addoption("--fail-on-skip", action="store_true", help="a skipped test fails the run")


def pytest_configure() -> None:
    """Two cores are shared by many processes: more threads only make timings and bits wander. And what a process of a
    cluster gets from its environment: no long wait for a name server that is silent."""
    torch.set_num_threads(1)
    export_environment({"RES_OPTIONS": "timeout:1 attempts:2"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier, and give it the tier's time-out unless it names its own."""
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0]
        if tier not in TIERS:
            raise pytest.UsageError(f"{item.nodeid}: tests live in a tier, one of {', '.join(TIERS)}")
        item.add_marker(tier)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(FAST_TIMEOUT_S if tier in FAST_TIERS else SLOW_TIMEOUT_S))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turn a passing run with skips into a failing one when asked to."""
    if _skips(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why a run with nothing but passes and skips has failed."""
    skips = _skips(terminalreporter.config)
    if skips:
        terminalreporter.write_line(f"FAILED: {skips} skipped, and --fail-on-skip allows none", red=True)


@pytest.fixture(autouse=True)
def _seed_from_test_id(request: pytest.FixtureRequest) -> None:
    """The same random numbers for the same test, whatever ran before it and however it was selected."""
    seed = zlib.crc32(request.node.name.encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _skips(config: pytest.Config) -> int:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not config.getoption("--fail-on-skip"):
        return 0
    return len(reporter.stats.get("skipped", []))
