"""Every number that operators are shown, in a real Prometheus beside a real cluster under traffic.

A cluster of its own, on the nano model, because a random one drafts nothing. Runs after `test_cluster.py` has ended
the shared one.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from ops.alerts.rules import ALERTS
from ops.dashboards.boards import BOARDS
from ops.prometheus.scrape_files import JOB, ScrapeFiles
from ops.prometheus.server import PrometheusServer
from ops.prometheus.targets import Targets, ask
from ops.telemetry.metrics import METRICS
from ops.telemetry.spec import Kind
from tests.checks.promql import selectors
from tests.live.cluster_process import ROOT, ClusterProcess

NANO = ROOT / "ops" / "nano" / "checkpoint"
EXPORTERS = range(19464, 19496)
PORT = 19390
TRAFFIC_S = 30.0
NUM_STREAMS = 4
QUESTIONS = ("What is 347 + 85?", "def add(a, b):", "Tell me about the sea.", "3 * 17 =")
VARIABLES = {"$job": JOB, "$layer": "3", "$__rate_interval": "1m"}
# What only a fault, a limit or a feature that is off makes anything of. Each is moved by a test of its own.
QUIET = frozenset(
    {
        "step35_activation_norm_ratio",  # needs some minutes of traffic
        "step35_autoscaler_decisions_total",
        "step35_autoscaler_desired_replicas",
        "step35_autoscaler_replicas",
        "step35_continuation_seconds",
        "step35_continuations_total",
    }
)


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcess]:
    cluster = ClusterProcess(
        tmp_path_factory.mktemp("prometheus"),
        NANO,
        experts={"ep_size": 2},
        balancing={"min_tokens": 100},
        telemetry={"metrics": {"port": EXPORTERS[0], "num_ports": len(EXPORTERS), "expert_matrix": True}},
    )
    try:
        cluster.wait_ready()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def prometheus(nano: ClusterProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Has scraped before and during some traffic, which goes on."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed; it is the Debian package of that name")
    folder = tmp_path_factory.mktemp("tsdb")
    files = ScrapeFiles(folder)
    files.write_config()
    with PrometheusServer(binary, files.config, folder, "127.0.0.1", PORT):
        files.write_targets(_targets())
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=20) as client:
            _wait_scraped(client)
            with _traffic(nano):
                threading.Event().wait(TRAFFIC_S)
                yield client


def test_every_process_is_scraped(prometheus: httpx.Client) -> None:
    """Coordinator, gateway, one attention actor and two expert ranks, and the matrix as an instance of its own."""
    assert len(_query(prometheus, f'up{{job="{JOB}"}} == 1')) == 6
    roles = {row["metric"]["role"] for row in _query(prometheus, "step35_telemetry_scrapes_total")}
    assert roles == {"coordinator", "gateway", "attention", "expert"}
    assert {row["metric"]["ep_rank"] for row in _query(prometheus, "step35_expert_busy_seconds_total")} == {"0", "1"}


@pytest.mark.parametrize("name", [board.name for board in BOARDS])
def test_every_expression_of_a_dashboard_is_answered(prometheus: httpx.Client, name: str) -> None:
    """Prometheus knows what it means, and finds something unless it asks for what only faults make."""
    board = next(board for board in BOARDS if board.name == name)
    expressions = [query.expression for row in board.rows for panel in row.panels for query in panel.queries]
    assert expressions
    empty = [each for each in expressions if not _query(prometheus, _filled(each)) and not _is_quiet(each)]
    assert empty == []


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.full_name)
def test_every_alert_is_evaluated_and_silent(prometheus: httpx.Client, alert: Any) -> None:
    """A healthy cluster wakes nobody; and what the alert compares is there to be compared."""
    assert _query(prometheus, f'ALERTS{{alertname="{alert.full_name}", alertstate="firing"}}') == []
    _query(prometheus, alert.expression)
    missing = [
        selector.name
        for selector in selectors(alert.expression)
        if not _query(prometheus, selector.name) and _base(selector.name) not in QUIET
    ]
    assert missing == []


def test_every_metric_moves(prometheus: httpx.Client) -> None:
    """Every one of the registry is recorded, and of the counters that traffic moves, none stands still."""
    recorded = {name for name, spec in METRICS.items() if _query(prometheus, _series(name, spec.kind))}
    assert set(METRICS) - recorded - QUIET == set()
    for name in (
        "step35_requests_finished_total",
        "step35_completion_tokens_total",
        "step35_accepted_tokens_total",
        "step35_exchanges_total",
        "step35_expert_pairs_total",
        "step35_step_part_seconds_total",
        "step35_reports_total",
        "step35_http_responses_total",
        "step35_requests_rejected_total",
        "vllm:generation_tokens_total",
        "vllm:spec_decode_num_accepted_tokens_total",
    ):
        (row,) = _query(prometheus, f"sum(increase({name}[1m]))")
        assert float(row["value"][1]) > 0.0, name


def test_both_tiers_count_the_same_tokens(prometheus: httpx.Client) -> None:
    """Pairs of the expert ranks are those that the gates chose: top-k of every row in every layer."""
    pairs = float(_query(prometheus, "sum(step35_expert_pairs_total)")[0]["value"][1])
    layers = _query(prometheus, "sum by (layer) (step35_expert_pairs_total)")
    each = [float(row["value"][1]) for row in layers]
    assert sum(each) == pytest.approx(pairs)
    assert max(each) == pytest.approx(min(each), rel=0.05), (
        "every layer sees every token; ranks report at their own time"
    )


def _targets() -> Targets:
    answers = ask(EXPORTERS)
    return Targets(tuple(answers), tuple(port for port, has_matrix in answers.items() if has_matrix))


def _wait_scraped(client: httpx.Client) -> None:
    deadline = time.monotonic() + 60
    while len(_query(client, "up == 1")) < 6:
        assert time.monotonic() < deadline, "prometheus does not scrape every process"
        threading.Event().wait(0.5)


@contextmanager
def _traffic(cluster: ClusterProcess) -> Iterator[None]:
    """Streams that never fail, requests that can never work, and a rebalance by hand."""
    stop = threading.Event()
    with ThreadPoolExecutor(NUM_STREAMS) as threads, httpx.Client(base_url=cluster.url, timeout=60) as client:
        streams = [threads.submit(_ask_until, client, question, stop) for question in QUESTIONS]
        try:
            for body in ({"model": "nothing", "messages": []}, {"model": "checkpoint", "messages": "none"}):
                assert client.post("/v1/chat/completions", json=body).status_code in (400, 404)
            threading.Event().wait(TRAFFIC_S / 2)
            _rebalance(cluster)
            yield
        finally:
            stop.set()
        assert min(stream.result() for stream in streams) > 0


def _rebalance(cluster: ClusterProcess) -> None:
    token = (cluster.file.parent / "admin.token").read_text().strip()
    order = httpx.post(
        f"{cluster.admin_url}/admin/experts/rebalance",
        json={"dry_run": False},
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
    )
    assert order.status_code in (200, 409), order.text  # 409: one is under way by itself


def _ask_until(client: httpx.Client, question: str, stop: threading.Event) -> int:
    """How many answers were complete."""
    body = {
        "model": "checkpoint",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 60,
        "stream": True,
    }
    count = 0
    while not stop.is_set():
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            assert "data: [DONE]" in "".join(answer.iter_text())
        count += 1
    return count


def _query(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    """The vector that an expression gives now; fails the test if Prometheus does not understand it."""
    answer = client.get("/api/v1/query", params={"query": expression})
    assert answer.status_code == 200, f"{expression}: {answer.text}"
    rows: list[dict[str, Any]] = answer.json()["data"]["result"]
    return rows


def _filled(expression: str) -> str:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


def _is_quiet(expression: str) -> bool:
    """Asks for what has gone, or for a quiet metric."""
    return "last_over_time(" in expression or any(_base(selector.name) in QUIET for selector in selectors(expression))


def _base(name: str) -> str:
    stem = re.sub(r"_(bucket|sum|count)$", "", name)
    return stem if stem in METRICS else name


def _series(name: str, kind: Kind) -> str:
    return f"{name}_count" if kind is Kind.HISTOGRAM else name
