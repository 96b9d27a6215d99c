"""The operator's hand on a running cluster: the admin route, the command line, and requests that do not notice.

Runs before `test_cluster.py`, whose last test ends the cluster that both share.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any

import httpx
import openai
import pytest

from tests.live.cluster_process import ROOT, ClusterProcess


def experts(cluster: ClusterProcess, *arguments: str) -> str:
    """`step35 experts ...` as an operator runs it; fails the test with its output if it fails."""
    command = [sys.executable, "-m", "cluster.cli", "experts", "--config", str(cluster.file), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def status(cluster: ClusterProcess) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(experts(cluster, "--json"))
    return fields


def wait_admin(cluster: ClusterProcess) -> None:
    """Until the admin port answers: it is closed while the coordinator restarts, and /ready does not ask it."""
    pause = threading.Event()
    for _ in range(160):
        try:
            if httpx.get(f"{cluster.admin_url}/health", timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        pause.wait(0.5)
    raise AssertionError("the admin port does not answer")


@pytest.fixture(autouse=True)
def admin(cluster: ClusterProcess) -> None:
    """Whatever the test before has killed is back."""
    wait_admin(cluster)


def ask(client: openai.OpenAI, max_tokens: int) -> str:
    completion = client.completions.create(
        model="tiny", prompt=[5, 6, 7], max_tokens=max_tokens, temperature=0, extra_body={"ignore_eos": True}
    )
    return str(completion.choices[0].finish_reason)


def wait_for(cluster: ClusterProcess, key: str, is_met: Any) -> dict[str, Any]:
    pause = threading.Event()
    for _ in range(60):
        fields = status(cluster)
        if is_met(fields[key]):
            return fields
        pause.wait(0.5)
    raise AssertionError(f"{key} is still {fields[key]}")


def test_a_rebalance_by_hand_while_a_request_runs(cluster: ClusterProcess, client: openai.OpenAI) -> None:
    """The map changes, the running request ends as if nothing had happened, and so do those after it."""
    assert ask(client, 40) == "length"
    before = wait_for(cluster, "window_tokens", lambda tokens: tokens > 0)
    reasons: list[str] = []
    running = threading.Thread(target=lambda: reasons.append(ask(client, 400)))
    running.start()
    assert "would begin" in experts(cluster, "rebalance", "--dry-run") or before["num_free_slots"] == 0
    experts(cluster, "rebalance")
    after = wait_for(cluster, "map_epoch", lambda epoch: epoch > before["map_epoch"])
    running.join(timeout=90)
    assert reasons == ["length"]
    assert ask(client, 5) == "length"
    done = wait_for(cluster, "balancer", lambda balancer: balancer["phase"] == "idle")
    assert done["balancer"]["history"][-1]["outcome"] == "done"
    assert after["num_redundant"] >= before["num_redundant"]


def test_the_table_and_the_orders(cluster: ClusterProcess, client: openai.OpenAI) -> None:
    """What an operator reads and types; a pin outlives the coordinator, because it is part of the view."""
    assert ask(client, 5) == "length"
    layer_id = status(cluster)["layers"][0]["layer_id"]
    assert "balanced" in experts(cluster)
    assert "pinned" in experts(cluster, "pin", str(layer_id), "3")
    assert "paused" in experts(cluster, "pause")
    killed = cluster.kill_replica("Coordinator")
    pause = threading.Event()
    while killed in cluster.replica_pids("Coordinator"):
        pause.wait(0.1)  # bounded by the test's time-out; SIGKILL cannot be refused
    wait_admin(cluster)
    cluster.wait_ready()
    fields = wait_for(cluster, "balancer", lambda balancer: balancer["is_paused"])
    assert [(each["layer_id"], each["logical_id"]) for each in fields["pinned"]] == [(layer_id, 3)]
    experts(cluster, "resume")
    experts(cluster, "unpin", str(layer_id), "3")
    assert status(cluster)["pinned"] == []


def test_nobody_without_the_token(cluster: ClusterProcess) -> None:
    """401 on the admin port, and nothing of it on the public one."""
    url = cluster.admin_url
    assert httpx.get(f"{url}/admin/experts", timeout=10).status_code == 401
    assert httpx.get(f"{cluster.url}/admin/experts", timeout=10).status_code == 404
