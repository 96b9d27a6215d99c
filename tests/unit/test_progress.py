"""What an operator and a probe are told while the cluster is incomplete."""

from __future__ import annotations

import pytest

from cluster.config import ClusterConfig
from cluster.membership import ClusterStatus
from cluster.progress import progress_line
from cluster.view import AttentionMember, ClusterView, Shard, with_attention, with_shard, with_transport
from routing.experts import linear_expert_map
from routing.transport.endpoint import Endpoint

HERE = Endpoint("shm", "x", "host")


def view_with(num_shards: int, *, is_ready: bool = False) -> ClusterView:
    view = with_transport(ClusterView(0, linear_expert_map(1, 4, 2)), "shm")
    for ep_rank in range(num_shards):
        view = with_shard(view, ep_rank, Shard(f"e{ep_rank}", HERE))
    return with_attention(view, "a0", AttentionMember(HERE, is_ready))


def test_progress_counts_leased_loaded_and_ready() -> None:
    """Two ranks leased, one of them loaded, one attention actor loaded and not yet warm."""
    config = ClusterConfig.model_validate({"checkpoint": "/models/step", "experts": {"ep_size": 2}})
    status = ClusterStatus(view_with(1).to_dict(), leased={0: "e0", 1: "e1"}, num_members=3)
    assert progress_line(config, status) == (
        "expert ranks: 2/2 leased, 1 loaded · attention: 1/1 loaded, 0 ready · transport shm"
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, of pydantic and others, when it is imported
@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (None, "the coordinator has not been reached yet"),
        (view_with(1, is_ready=True), "no process serves expert ranks 1"),
        (view_with(2), "no attention actor has warmed up yet"),
        (view_with(2, is_ready=True), ""),
    ],
)
def test_readiness_says_what_is_missing(view: ClusterView | None, reason: str) -> None:
    """Ready only when nothing is; otherwise the first thing that is missing, by name."""
    from cluster.handles import readiness

    answer = readiness(view)
    assert (answer.ready, answer.reason) == (reason == "", reason)
