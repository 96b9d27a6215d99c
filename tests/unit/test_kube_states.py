"""What makes a node or a pod one that is about to go, and which ranks stand and fall together."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.kube.settings import KubernetesConfig
from cluster.kube.states import NodeState, node_doom, node_state, pod_doom, pod_state, surroundings
from cluster.membership import Place
from cluster.surroundings import Doom, Surroundings, doomed_members, host_of_rank
from cluster.view import AttentionMember, ClusterView, Shard, with_attention, with_shard
from routing.experts import linear_expert_map
from routing.transport.endpoint import Endpoint

SETTINGS = KubernetesConfig(topology_labels=("zone", "rack"), maintenance_marks=("in-repair", "state=ONGOING"))
READY = {"conditions": [{"type": "Ready", "status": "True"}]}


def node(**fields: Any) -> NodeState:
    metadata = {"name": "n", **fields.pop("metadata", {})}
    return node_state({"metadata": metadata, "spec": {}, "status": READY, **fields}, SETTINGS)


def taint(key: str, effect: str = "NoSchedule") -> dict[str, Any]:
    return {"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}, {"key": key, "effect": effect}]}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"spec": {"unschedulable": True}}, "node n is cordoned"),
        ({"spec": taint("karpenter.sh/disrupted")}, "node n is tainted karpenter.sh/disrupted"),
        ({"spec": taint("ToBeDeletedByClusterAutoscaler")}, "node n is tainted ToBeDeletedByClusterAutoscaler"),
        ({"spec": taint("node.kubernetes.io/out-of-service", "NoExecute")}, "node n is tainted node.kubernetes.io/out"),
        ({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}, "node n is not ready"),
        ({"status": {"conditions": [{"type": "PreemptScheduled", "status": "True"}]}}, "condition PreemptScheduled"),
        ({"metadata": {"labels": {"in-repair": ""}}}, "is marked in-repair="),
        ({"metadata": {"annotations": {"state": "ONGOING"}}}, "is marked state=ONGOING"),
    ],
)
def test_nodes_that_are_about_to_go(fields: dict[str, Any], reason: str) -> None:
    """Each sign by itself, with a sentence that names it; nobody has said when."""
    doom = node_doom(node(**fields), SETTINGS)
    assert doom is not None
    assert reason in doom.reason
    assert doom.deadline is None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"spec": {"unschedulable": False}},
        {"spec": taint("DeletionCandidateOfClusterAutoscaler", "PreferNoSchedule")},
        {"spec": taint("karpenter.sh/disrupted", "PreferNoSchedule")},
        {"spec": taint("team")},
        {"status": {"conditions": [{"type": "DiskPressure", "status": "True"}, {"type": "Ready", "status": "True"}]}},
        {"status": {"conditions": [{"type": "PreemptScheduled", "status": "False"}]}},
        {"status": {}},
        {"metadata": {"labels": {"state": "PLANNED"}}},
    ],
)
def test_nodes_that_stay(fields: dict[str, Any]) -> None:
    """A wish, somebody's own taint, another condition, another value of the mark."""
    assert node_doom(node(**fields), SETTINGS) is None


def test_two_taints_of_one_key_do_not_hide_each_other() -> None:
    """The soft one comes last."""
    taints = [{"key": "karpenter.sh/disrupted", "effect": effect} for effect in ("NoSchedule", "PreferNoSchedule")]
    assert node_doom(node(spec={"taints": taints}), SETTINGS) is not None


def test_pods_that_are_about_to_go() -> None:
    """A pod that is being deleted has a deadline; one that is to be evicted has a reason; others have neither."""
    metadata = {"name": "p", "deletionTimestamp": "2026-11-28T08:45:00Z"}
    assert pod_doom(pod_state({"metadata": metadata}, SETTINGS)) == Doom("pod p is being deleted", 1795855500.0)
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    evicted = pod_doom(pod_state({"metadata": {"name": "p"}, "status": {"conditions": [condition]}}, SETTINGS))
    assert evicted == Doom("pod p is about to be evicted (EvictionByEvictionAPI)")
    assert pod_doom(pod_state({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}}, SETTINGS)) is None


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"metadata": {"name": ""}},
        {"metadata": []},
        {"metadata": {"name": "n"}, "spec": {"taints": "none"}},
        {"metadata": {"name": "n"}, "status": {"conditions": [7]}},
    ],
)
def test_what_is_no_node_is_refused(broken: dict[str, Any]) -> None:
    """With the one exception that a follower knows."""
    with pytest.raises(ValueError, match=r"without a name|is no"):
        node_state(broken, SETTINGS)


def view_of(*hosts: str) -> ClusterView:
    """One rank on each host, and an attention actor."""
    view = ClusterView(0, linear_expert_map(1, 12, len(hosts)))
    for rank, host in enumerate(hosts):
        view = with_shard(view, rank, Shard(f"e{rank}", Endpoint("gloo", f"e{rank}", host)))
    return with_attention(view, "a0", AttentionMember(Endpoint("gloo", "a0", "h"), is_ready=True))


def test_members_go_with_their_pod_and_their_node() -> None:
    """The pod's doom comes first, for its deadline; a node that no longer exists dooms too, if nodes are seen."""
    view = view_of("h0", "h1", "h2")
    places = {"e0": Place("p0", "n0"), "e1": Place("p1", "n1"), "a0": Place("pa", "n0"), "gone": Place("p0", "n0")}
    pods, nodes = {"p0": Doom("pod", 5.0)}, {"n0": Doom("node")}
    seen = doomed_members(view, places, Surroundings(pods, nodes, {"n0": (), "n1": ()}))
    assert seen == {"e0": Doom("pod", 5.0), "a0": Doom("node")}
    assert doomed_members(view, places, Surroundings(domains={"n0": ()})) == {"e1": Doom("node n1 no longer exists")}
    assert doomed_members(view, places, Surroundings()) == {}
    assert doomed_members(view, {}, Surroundings(domains={})) == {}


@pytest.mark.parametrize(
    ("domains", "nodes", "hosts", "expected"),
    [
        ([("a", "r1"), ("a", "r2"), ("b", "r3"), ("b", "r4")], "wxyz", "1234", (0, 0, 1, 1)),  # zones
        ([("a", "r1"), ("a", "r2"), ("a", "r1"), ("a", "r2")], "wxyz", "1234", (0, 1, 0, 1)),  # one zone: racks
        ([("a", ""), ("a", "r2"), ("a", "r1"), ("a", "r2")], "wwzz", "1234", (0, 0, 1, 1)),  # a rack unknown: nodes
        ([("a", ""), ("a", ""), ("a", ""), ("a", "")], "wxyz", "1122", (0, 0, 1, 1)),  # hosts
        ([("a", ""), ("a", ""), ("a", ""), ("a", "")], "wxyz", "1234", None),  # each on its own
        ([("a", "r"), ("a", "r"), ("a", "r"), ("a", "r")], "wwww", "1111", None),  # all on one
        (None, "    ", "1122", (0, 0, 1, 1)),  # outside of Kubernetes
    ],
)
def test_the_widest_domain_that_tells_ranks_apart(
    domains: list[tuple[str, ...]] | None, nodes: str, hosts: str, expected: tuple[int, ...] | None
) -> None:
    """By level; a level that some rank has no value of says nothing."""
    view = view_of(*hosts)
    places = {f"e{rank}": Place(f"p{rank}", node.strip()) for rank, node in enumerate(nodes)}
    known = None if domains is None else dict(zip(nodes, domains, strict=True))
    assert host_of_rank(view, places, Surroundings(domains=known)) == expected
    missing = ClusterView(0, view.expert_map, shards={0: view.shards[0]})
    assert host_of_rank(missing, places, Surroundings(domains=known)) is None


def test_surroundings_are_made_of_all_states() -> None:
    """Nodes with their domains, dooms of both kinds; without sight of nodes none is missed."""
    labelled = node(metadata={"labels": {"zone": "a", "team": "x"}}, spec={"unschedulable": True})
    deleted = pod_state({"metadata": {"name": "p", "deletionTimestamp": "2026-11-28T08:45:00Z"}}, SETTINGS)
    made = surroundings([labelled], [deleted], SETTINGS, has_all_nodes=True)
    assert made.domains == {"n": ("a", "")}
    assert (set(made.doomed_nodes), set(made.doomed_pods)) == ({"n"}, {"p"})
    assert "team" not in labelled.labels, "only what the settings name is kept"
    partly = surroundings([labelled], [], SETTINGS, has_all_nodes=False)
    assert (partly.domains, set(partly.doomed_nodes)) == (None, {"n"})
