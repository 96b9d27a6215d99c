"""How far a starting cluster is, in one line of words. Pure."""

from __future__ import annotations

from cluster.config import ClusterConfig
from cluster.membership import ClusterStatus
from cluster.view import ClusterView


def progress_line(config: ClusterConfig, status: ClusterStatus) -> str:
    """For an operator who waits: which expert ranks are leased and loaded, which attention actors are warm."""
    view = ClusterView.from_dict(status.view)
    num_ready = sum(member.is_ready for member in view.attention.values())
    parts = [
        f"expert ranks: {len(status.leased)}/{config.experts.ep_size} leased, {len(view.shards)} loaded",
        f"attention: {len(view.attention)}/{config.attention.num_replicas} loaded, {num_ready} ready",
    ]
    if view.transport is not None:
        parts.append(f"transport {view.transport}")
    return " · ".join(parts)
