"""ClusterView: who is in the cluster and which expert lives where, as one numbered, immutable value. Pure.

Every change makes a new view with the next `view_id`; a process adopts a view only if it is newer than its own. Knows
nothing of Ray, time or transports beyond the addresses it carries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from routing.experts import PAIRS_PER_TOUCH, ExpertMap
from routing.placement.contract import Pin
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
class Orders:
    """What the operator has ordered of the balancer. Part of the view, so that it outlives the coordinator.

    is_paused: no rebalance begins by itself. pins: expert copies that stay exactly where they are ordered to be.
    """

    is_paused: bool = False
    pins: tuple[Pin, ...] = ()

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Orders:
        """Inverse of `asdict`. Raises KeyError, TypeError or ValueError on anything else."""
        pins = (Pin(**{**pin, "ep_ranks": tuple(pin["ep_ranks"])}) for pin in fields["pins"])
        return cls(bool(fields["is_paused"]), tuple(pins))


@dataclass(frozen=True)
class ClusterView:
    """Membership, expert map and the operator's orders at one moment.

    transport: kind every port of this cluster uses, None until it is chosen. shards: by ep_rank.
    attention: by member id. next_map: the map a rebalance prepares, None outside of one. previous_map: the map before
    this one, served until every attention actor has adopted its successor. At most one of the two is there.
    pairs_per_touch: pairs that cost an expert rank as much as touching one more expert, as dispatches weigh it.
    doomed: by member id, why a member is about to go: whoever can do without it sends it nothing new.
    """

    view_id: int
    expert_map: ExpertMap
    next_map: ExpertMap | None = None
    previous_map: ExpertMap | None = None
    orders: Orders = field(default_factory=lambda: Orders())
    transport: str | None = None
    shards: Mapping[int, Shard] = field(default_factory=dict)
    attention: Mapping[str, AttentionMember] = field(default_factory=dict)
    doomed: Mapping[str, str] = field(default_factory=dict)
    pairs_per_touch: int = PAIRS_PER_TOUCH

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", MappingProxyType(dict(sorted(self.shards.items()))))
        object.__setattr__(self, "attention", MappingProxyType(dict(sorted(self.attention.items()))))
        object.__setattr__(self, "doomed", MappingProxyType(dict(sorted(self.doomed.items()))))
        if self.next_map is not None and self.previous_map is not None:
            raise ValueError("a map cannot be prepared while the one before the last is still served")
        outside = [ep_rank for ep_rank in self.shards if not 0 <= ep_rank < self.expert_map.ep_size]
        if outside:
            raise ValueError(f"EP ranks {outside} lie outside 0..{self.expert_map.ep_size - 1}")

    @property
    def missing_ranks(self) -> tuple[int, ...]:
        """EP ranks nobody serves, ascending."""
        return tuple(sorted(set(range(self.expert_map.ep_size)) - self.shards.keys()))

    @property
    def served_maps(self) -> tuple[ExpertMap, ...]:
        """What every expert rank serves, the current map first."""
        return (self.expert_map,) if self.previous_map is None else (self.expert_map, self.previous_map)

    @property
    def highest_epoch(self) -> int:
        """Of all maps in the view; the next map that is made gets a higher one."""
        maps = (self.expert_map, self.next_map, self.previous_map)
        return max(expert_map.map_epoch for expert_map in maps if expert_map is not None)

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
            "previous_map": self.previous_map.to_dict() if self.previous_map else None,
            "orders": asdict(self.orders),
            "transport": self.transport,
            "shards": [{"ep_rank": ep_rank, **asdict(shard)} for ep_rank, shard in self.shards.items()],
            "attention": [{"member_id": key, **asdict(member)} for key, member in self.attention.items()],
            "doomed": dict(self.doomed),
            "pairs_per_touch": self.pairs_per_touch,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ClusterView:
        """Inverse of `to_dict`. Raises KeyError, TypeError or ValueError on anything else."""
        transport = fields["transport"]
        return cls(
            view_id=int(fields["view_id"]),
            expert_map=ExpertMap.from_dict(fields["expert_map"]),
            next_map=_map_or_none(fields["next_map"]),
            previous_map=_map_or_none(fields["previous_map"]),
            orders=Orders.from_dict(fields["orders"]),
            transport=str(transport) if transport is not None else None,
            shards={int(row["ep_rank"]): _shard(row) for row in fields["shards"]},
            attention={str(row["member_id"]): _attention_member(row) for row in fields["attention"]},
            doomed={str(member_id): str(reason) for member_id, reason in fields["doomed"].items()},
            pairs_per_touch=int(fields["pairs_per_touch"]),
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


def with_next_map(view: ClusterView, next_map: ExpertMap, pairs_per_touch: int | None = None) -> ClusterView:
    """The view after a rebalance began to prepare a map. The map's epoch must be higher than any in the view.
    pairs_per_touch: as the map was planned with; None keeps what is known."""
    assert next_map.map_epoch > view.highest_epoch, "a map epoch is never used twice"
    return _next(view, next_map=next_map, pairs_per_touch=pairs_per_touch or view.pairs_per_touch)


def without_next_map(view: ClusterView) -> ClusterView:
    """The view after a rebalance was abandoned: the current map goes on."""
    return view if view.next_map is None else _next(view, next_map=None)


def with_next_map_adopted(view: ClusterView) -> ClusterView:
    """The view after every rank has prepared the next map: it is the current one, and the old one is still served."""
    assert view.next_map is not None, "there is no map to adopt"
    return _next(view, expert_map=view.next_map, previous_map=view.expert_map, next_map=None)


def without_previous_map(view: ClusterView) -> ClusterView:
    """The view after every attention actor has adopted the current map."""
    return view if view.previous_map is None else _next(view, previous_map=None)


def with_doomed(view: ClusterView, doomed: Mapping[str, str]) -> ClusterView:
    """The view after it became known which members are about to go. By member id, why."""
    return view if view.doomed == doomed else _next(view, doomed=doomed)


def with_orders(view: ClusterView, orders: Orders) -> ClusterView:
    """The view after the operator gave an order."""
    return view if view.orders == orders else _next(view, orders=orders)


def raised_above(view: ClusterView, seen: ClusterView, holders: Mapping[int, str]) -> ClusterView:
    """The view of a restarted coordinator after a member showed what it had seen: a higher number, the newer maps, and
    everyone in both, so that nobody hangs up on a process that lives. The dead are dropped later, for their silence.
    A rebalance goes on from where the newest view left it.

    holders: member id by ep_rank; a shard is kept only if its member holds the rank.
    """
    is_newer_map = seen.expert_map.map_epoch > view.expert_map.map_epoch
    if seen == view or (seen.view_id < view.view_id and not is_newer_map):
        return view
    newest = seen if is_newer_map or seen.view_id >= view.view_id else view
    maps: dict[str, Any] = {
        "expert_map": newest.expert_map,
        "next_map": newest.next_map,
        "previous_map": newest.previous_map,
    }
    if seen.view_id < view.view_id:
        return _next(view, **maps)  # it names members that may have left since
    shards = {
        ep_rank: shard
        for known in (seen.shards, view.shards)
        for ep_rank, shard in known.items()
        if holders.get(ep_rank) == shard.member_id
    }
    return replace(
        view,
        view_id=seen.view_id + 1,
        transport=view.transport or seen.transport,
        orders=newest.orders,
        shards=shards,
        attention={**seen.attention, **view.attention},
        **maps,
    )


def _next(view: ClusterView, **changes: Any) -> ClusterView:
    return replace(view, view_id=view.view_id + 1, **changes)


def _map_or_none(fields: Mapping[str, Any] | None) -> ExpertMap | None:
    return None if fields is None else ExpertMap.from_dict(fields)


def _shard(row: Mapping[str, Any]) -> Shard:
    return Shard(str(row["member_id"]), Endpoint(**row["endpoint"]))


def _attention_member(row: Mapping[str, Any]) -> AttentionMember:
    return AttentionMember(Endpoint(**row["endpoint"]), bool(row["is_ready"]))
