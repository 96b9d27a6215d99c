"""ClusterView: who is in the cluster and which expert lives where, as one numbered, immutable value. Pure.

Every change makes a new view with the next `view_id`; a process adopts a view only if it is newer than its own. Knows
nothing of Ray, time or transports beyond the addresses it carries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from routing.experts import ExpertMap
from routing.transport.endpoint import Endpoint


@dataclass(frozen=True)
class Shard:
    """The process that holds one EP rank and where it takes rows."""

    member_id: str
    endpoint: Endpoint


@dataclass(frozen=True)
class AttentionMember:
    """One attention actor. is_ready: it can produce a token now, and has done so once."""

    endpoint: Endpoint
    is_ready: bool = False


@dataclass(frozen=True)
class ClusterView:
    """Membership and expert map at one moment.

    transport: kind every port of this cluster uses, None until it is chosen. shards: by ep_rank.
    attention: by member id. next_map: the map a rebalance prepares, None outside of one.
    """

    view_id: int
    expert_map: ExpertMap
    next_map: ExpertMap | None = None
    transport: str | None = None
    shards: Mapping[int, Shard] = field(default_factory=dict)
    attention: Mapping[str, AttentionMember] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", MappingProxyType(dict(sorted(self.shards.items()))))
        object.__setattr__(self, "attention", MappingProxyType(dict(sorted(self.attention.items()))))
        outside = [ep_rank for ep_rank in self.shards if not 0 <= ep_rank < self.expert_map.ep_size]
        if outside:
            raise ValueError(f"EP ranks {outside} lie outside 0..{self.expert_map.ep_size - 1}")

    @property
    def missing_ranks(self) -> tuple[int, ...]:
        """EP ranks nobody serves, ascending."""
        return tuple(sorted(set(range(self.expert_map.ep_size)) - self.shards.keys()))

    @property
    def is_serving(self) -> bool:
        """True when a token can be produced: every EP rank is there and an attention actor has warmed up."""
        return not self.missing_ranks and any(member.is_ready for member in self.attention.values())

    def shard_endpoints(self) -> dict[int, Endpoint]:
        """By ep_rank, what an attention port connects to."""
        return {ep_rank: shard.endpoint for ep_rank, shard in self.shards.items()}

    def attention_endpoints(self) -> tuple[Endpoint, ...]:
        """What an expert port serves."""
        return tuple(member.endpoint for member in self.attention.values())

    def is_newer_than(self, other: ClusterView | None) -> bool:
        """The one ordering rule: adopt a view only if this is true."""
        return other is None or self.view_id > other.view_id

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, so that a view crosses a process without pickled classes."""
        return {
            "view_id": self.view_id,
            "expert_map": self.expert_map.to_dict(),
            "next_map": self.next_map.to_dict() if self.next_map else None,
            "transport": self.transport,
            "shards": [{"ep_rank": ep_rank, **asdict(shard)} for ep_rank, shard in self.shards.items()],
            "attention": [{"member_id": key, **asdict(member)} for key, member in self.attention.items()],
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ClusterView:
        """Inverse of `to_dict`. Raises KeyError, TypeError or ValueError on anything else."""
        next_map, transport = fields["next_map"], fields["transport"]
        return cls(
            view_id=int(fields["view_id"]),
            expert_map=ExpertMap.from_dict(fields["expert_map"]),
            next_map=ExpertMap.from_dict(next_map) if next_map is not None else None,
            transport=str(transport) if transport is not None else None,
            shards={int(row["ep_rank"]): _shard(row) for row in fields["shards"]},
            attention={str(row["member_id"]): _attention_member(row) for row in fields["attention"]},
        )


def with_transport(view: ClusterView, transport: str) -> ClusterView:
    """The view after the kind of transport was chosen."""
    return view if view.transport == transport else _next(view, transport=transport)


def with_shard(view: ClusterView, ep_rank: int, shard: Shard) -> ClusterView:
    """The view after a process began to serve an EP rank. A rank's former holder is replaced."""
    return view if view.shards.get(ep_rank) == shard else _next(view, shards={**view.shards, ep_rank: shard})


def with_attention(view: ClusterView, member_id: str, member: AttentionMember) -> ClusterView:
    """The view after an attention actor joined, moved or became ready."""
    if view.attention.get(member_id) == member:
        return view
    return _next(view, attention={**view.attention, member_id: member})


def without_member(view: ClusterView, member_id: str) -> ClusterView:
    """The view after a process left or died, whatever it was. Unchanged if it was in none of its parts."""
    shards = {ep_rank: shard for ep_rank, shard in view.shards.items() if shard.member_id != member_id}
    attention = {key: member for key, member in view.attention.items() if key != member_id}
    if len(shards) == len(view.shards) and len(attention) == len(view.attention):
        return view
    return _next(view, shards=shards, attention=attention)


def raised_above(view: ClusterView, seen: ClusterView, holders: Mapping[int, str]) -> ClusterView:
    """The view of a restarted coordinator after a member showed what it had seen: a higher number, the newer map, and
    everyone in both, so that nobody hangs up on a process that lives. The dead are dropped later, for their silence.

    holders: member id by ep_rank; a shard is kept only if its member holds the rank.
    """
    if seen.view_id < view.view_id or seen == view:
        return view
    newer_map = seen.expert_map if seen.expert_map.map_epoch > view.expert_map.map_epoch else view.expert_map
    shards = {
        ep_rank: shard
        for known in (seen.shards, view.shards)
        for ep_rank, shard in known.items()
        if holders.get(ep_rank) == shard.member_id
    }
    return replace(
        view,
        view_id=seen.view_id + 1,
        expert_map=newer_map,
        transport=view.transport or seen.transport,
        shards=shards,
        attention={**seen.attention, **view.attention},
    )


def _next(view: ClusterView, **changes: Any) -> ClusterView:
    return replace(view, view_id=view.view_id + 1, **changes)


def _shard(row: Mapping[str, Any]) -> Shard:
    return Shard(str(row["member_id"]), Endpoint(**row["endpoint"]))


def _attention_member(row: Mapping[str, Any]) -> AttentionMember:
    return AttentionMember(Endpoint(**row["endpoint"]), bool(row["is_ready"]))
