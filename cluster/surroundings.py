"""What is about to happen to the places where members run, and what follows for the members. Pure.

Knows nothing of who says so: `cluster.kube` makes these values, the balancer reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.membership import Place
from cluster.view import ClusterView


@dataclass(frozen=True)
class Doom:
    """A place is about to go. reason: a sentence. deadline: seconds since the epoch, None if nobody has said when."""

    reason: str
    deadline: float | None = None


@dataclass(frozen=True)
class Surroundings:
    """Places by name.

    domains: of each node that is there: what it shares with others, from wide to narrow, "" where that is not known.
    None while not all nodes are seen.
    """

    doomed_pods: Mapping[str, Doom] = field(default_factory=dict)
    doomed_nodes: Mapping[str, Doom] = field(default_factory=dict)
    domains: Mapping[str, tuple[str, ...]] | None = None

    def doom_of(self, place: Place) -> Doom | None:
        """What is known of the pod comes first: it has a deadline."""
        doom = self.doomed_pods.get(place.pod) or self.doomed_nodes.get(place.node)
        if doom is None and self.domains is not None and place.node and place.node not in self.domains:
            return Doom(f"node {place.node} no longer exists")
        return doom

    def domains_of(self, place: Place) -> tuple[str, ...]:
        """The node itself is the last one."""
        return (*(self.domains or {}).get(place.node, ()), place.node)


def doomed_members(view: ClusterView, places: Mapping[str, Place], surroundings: Surroundings) -> dict[str, Doom]:
    """By member id, of those in the view. places: of members that have said where they are."""
    members = [*(shard.member_id for shard in view.shards.values()), *view.attention]
    found = {member_id: surroundings.doom_of(places.get(member_id, Place())) for member_id in members}
    return {member_id: doom for member_id, doom in found.items() if doom is not None}


def host_of_rank(view: ClusterView, places: Mapping[str, Place], surroundings: Surroundings) -> tuple[int, ...] | None:
    """Which ranks stand and fall together: those of one zone, rack or whatever domain is the widest that tells some
    ranks apart and not all, then those of one node, then of one host. None if nothing does."""
    if view.missing_ranks:
        return None
    ranks = [
        (*surroundings.domains_of(places.get(shard.member_id, Place())), shard.endpoint.host_id)
        for shard in view.shards.values()
    ]
    if len({len(names) for names in ranks}) != 1:
        ranks = [names[-1:] for names in ranks]  # what Kubernetes knows of some of them only compares nothing
    for level in zip(*ranks, strict=True):
        if all(level) and 1 < len(set(level)) < len(level):
            order = sorted(set(level))
            return tuple(order.index(name) for name in level)
    return None
