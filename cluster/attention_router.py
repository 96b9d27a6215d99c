"""Where a gateway sends a request: to the less busy of two attention actors, leaving out those that are about to go.

Ray Serve imports it by path, in each process that holds a handle of the attention deployment.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from ray.serve.request_router import FIFOMixin, LocalityMixin, PendingRequest, RequestRouter, RunningReplica

IS_DRAINING = "is_draining"  # what a replica says of itself, see AttentionDeployment.record_routing_stats


class Routable(Protocol):
    """What is known here of a replica."""

    @property
    def routing_stats(self) -> Mapping[str, Any]: ...


Replica = TypeVar("Replica", bound=Routable)


def willing(replicas: Sequence[Replica]) -> list[Replica]:
    """Those that do not drain; all if all do, because a stream that is cut is better than none."""
    return [replica for replica in replicas if not replica.routing_stats.get(IS_DRAINING)] or list(replicas)


class AttentionRouter(FIFOMixin, LocalityMixin, RequestRouter):
    """Serve asks the two replicas for their queue lengths and takes the shorter; see Serve's own router."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One round; Serve begins another when neither has room."""
        near = self.apply_locality_routing(pending_request)
        candidates = willing(candidate_replicas)
        nearest = [replica for replica in candidates if replica.replica_id in near] or candidates
        return [random.sample(nearest, min(2, len(nearest)))] if nearest else []
