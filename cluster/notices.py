"""Notices: what the cluster tells whoever looks after it, one sentence each. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cluster.view import ClusterView


@dataclass(frozen=True)
class Notice:
    """Something happened. kind: one word for all of its sort, in snake case. member: whom it is about, if anybody."""

    kind: str
    text: str
    member: str | None = None
    is_warning: bool = False


Tell = Callable[[Notice], None]


def tell_nobody(_notice: Notice) -> None:
    """For a cluster that nobody listens to."""


def changes(before: ClusterView, after: ClusterView) -> Iterator[Notice]:
    """What one view says that another did not: ranks and actors lost and gained, and members that are about to go."""
    for ep_rank, shard in before.shards.items():
        if ep_rank not in after.shards:
            yield Notice("rank_lost", f"EP rank {ep_rank} is lost: nobody serves it", shard.member_id, is_warning=True)
    for ep_rank, shard in after.shards.items():
        known = before.shards.get(ep_rank)
        if known is None or known.member_id != shard.member_id:
            yield Notice("rank_leased", f"EP rank {ep_rank} is served by {shard.member_id}", shard.member_id)
    for member_id in before.attention.keys() - after.attention.keys():
        yield Notice("member_lost", f"attention actor {member_id} is gone", member_id, is_warning=True)
    for member_id in after.attention.keys() - before.attention.keys():
        yield Notice("member_joined", f"attention actor {member_id} has joined", member_id)
    yield from _fates(before, after)


def _fates(before: ClusterView, after: ClusterView) -> Iterator[Notice]:
    for member_id, reason in after.doomed.items():
        if before.doomed.get(member_id) != reason:
            text = f"{_named(after, member_id)} is about to go: {reason}"
            yield Notice("member_doomed", text, member_id, is_warning=True)
    for member_id in before.doomed.keys() - after.doomed.keys():
        if member_id in after.attention or any(shard.member_id == member_id for shard in after.shards.values()):
            yield Notice("member_spared", f"{_named(after, member_id)} stays after all", member_id)


def _named(view: ClusterView, member_id: str) -> str:
    ranks = [ep_rank for ep_rank, shard in view.shards.items() if shard.member_id == member_id]
    return f"EP rank {ranks[0]}" if ranks else f"attention actor {member_id}"
