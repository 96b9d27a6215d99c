"""The operator's page and its made-up cluster without a browser: files, policy, and states of the fixed form."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request

import numpy as np
import pytest

from cluster.experts_status import ExpertTierStatus, Proposal
from ops.console.demo import STATIC, TOKEN, TYPES, Demo, SetClock, registry, static_file
from ops.console.synthetic.cluster import InvalidOrder, SyntheticCluster
from ops.console.synthetic.shape import FULL, NANO, Shape
from ops.telemetry.metrics import METRICS
from ops.telemetry.spec import Kind, Owner

SCRIPTS = sorted(STATIC.glob("*.js"))
both_shapes = pytest.mark.parametrize("shape", [FULL, NANO], ids=["full", "nano"])


def test_page_names_only_files_of_its_own() -> None:
    """Every script and style sheet is there, each script is imported by another, and nothing is fetched elsewhere."""
    page = (STATIC / "index.html").read_text()
    named = set(re.findall(r'(?:src|href)="console/([^"]+)"', page))
    for script in SCRIPTS:
        named |= set(re.findall(r'from "\./([^"]+)"', script.read_text()))
    assert named | {"index.html"} == {path.name for path in STATIC.iterdir()}
    everything = page + "".join(path.read_text() for path in STATIC.iterdir())
    assert re.findall(r"https?://", everything) == []


def test_page_needs_nothing_that_its_policy_forbids() -> None:
    """No inline script, style or handler, and data become text: no script writes markup."""
    page = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", page) == []
    for script in SCRIPTS:
        source = script.read_text()
        assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", source) == []
        assert source.startswith("// "), f"{script.name} does not say what it owns"
        assert len(source.splitlines()) <= 300


@pytest.mark.parametrize(
    "path", ["/console/../demo.py", "/console/%2e%2e/demo.py", "/console/", "/other", "/console/x.js"]
)
def test_nothing_but_the_page_is_served(path: str) -> None:
    """Paths lead to the files of the page and nowhere else."""
    assert static_file(path) is None
    assert static_file("/") == STATIC / "index.html"


def test_demo_asks_for_the_token_and_sends_the_policy() -> None:
    """Data need the token; the page does not, and says what it may load."""
    with Demo(NANO, SetClock()) as demo:
        with urllib.request.urlopen(demo.url, timeout=5) as page:
            assert page.headers["content-type"] == TYPES[".html"]
            assert page.headers["content-security-policy"].startswith("default-src 'none'")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{demo.url}admin/state", timeout=5)
        assert refused.value.code == 401
        refused.value.close()
        request = urllib.request.Request(f"{demo.url}admin/state", headers={"authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert json.load(answer)["model"]["ep_size"] == NANO.ep_size


@both_shapes
def test_states_have_the_fixed_form(shape: Shape) -> None:
    """What the coordinator shows reads back from a made-up state, and metrics are those that are declared."""
    cluster = SyntheticCluster(shape)
    cluster.tick()
    state = json.loads(json.dumps(cluster.state()))
    status = ExpertTierStatus.from_dict(state["experts"])
    assert [layer.layer_id for layer in status.layers] == list(shape.layer_ids)
    assert np.shape(state["load"]) == (shape.num_layers, shape.num_logical_experts)
    for member in state["members"]:
        for name, values in member["metrics"].items():
            spec = METRICS[name]
            assert spec.owner in (member["role"], Owner.EVERY)
            for labels, value in values:
                assert len(labels) == len(spec.labels)
                assert all(
                    not each.values or label in each.values for each, label in zip(spec.labels, labels, strict=True)
                )
                assert (spec.kind is Kind.HISTOGRAM) == isinstance(value, dict)
    assert registry().keys() == METRICS.keys()


@both_shapes
def test_same_seconds_give_the_same_states(shape: Shape) -> None:
    """A picture drawn today equals one drawn tomorrow."""
    first, second = SyntheticCluster(shape), SyntheticCluster(shape)
    for _ in range(20):
        first.tick()
        second.tick()
    assert first.state() == second.state()


@both_shapes
def test_load_drifts_and_a_rebalance_answers(shape: Shape) -> None:
    """Every expert has a copy all the time, pairs are those of the load, and balance is lost and found."""
    cluster, seen = SyntheticCluster(shape), {}
    for second in range(1, 216):
        cluster.tick()
        if second % 10 == 5 or 139 <= second <= 150:
            seen[second] = status = cluster.state()["experts"]
            slots = cluster.map()["physical_to_logical"]
            assert all(set(layer) >= set(range(shape.num_logical_experts)) for layer in slots)
            on_ranks = [sum(layer["rank_pairs"]) for layer in status["layers"]]
            assert on_ranks == pytest.approx(np.sum(cluster.state()["load"], axis=1), rel=0.01)
    balance = {second: status["balancedness"] for second, status in seen.items()}
    phases = {second: status["balancer"]["phase"] for second, status in seen.items()}
    assert phases[139] == phases[215] == "idle"
    assert {"preparing", "adopting"} == {phases[second] for second in range(140, 151)}
    assert balance[139] < balance[15] - 0.03
    assert balance[215] > balance[139] + 0.03
    record = cluster.state()["experts"]["balancer"]["history"][-1]
    assert (record["trigger"], record["outcome"]) == ("drift", "done")
    assert record["balancedness_after"] > record["balancedness_before"]


def test_orders_change_the_made_up_cluster() -> None:
    """A proposal has the coordinator's form; pins are kept and given back; nonsense is refused."""
    cluster = SyntheticCluster(NANO)
    Proposal(**cluster.rebalance(is_dry_run=True))
    assert cluster.pin(3, 5, [1])["is_pinned"]
    assert [pin["logical_id"] for pin in cluster.state()["experts"]["pinned"]] == [5]
    assert not cluster.unpin(3, 5)["is_pinned"]
    for order in (lambda: cluster.unpin(3, 5), lambda: cluster.pin(99, 0, None), lambda: cluster.pin(3, 5, [9])):
        with pytest.raises(InvalidOrder):
            order()
    assert cluster.set_paused(is_paused=True)["is_paused"]
