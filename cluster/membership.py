"""What members and the coordinator say to each other: the coordinator's interface and the frozen values that cross it.

`Coordinator` implements the interface in one process; `handles.RemoteCoordinator` puts it behind a Serve handle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cluster.autoscaling import GatewayLoad
from ops.telemetry.plain import PlainMetrics
from routing.transport.endpoint import Endpoint


@dataclass(frozen=True)
class ViewReply:
    """Answer to a long poll. is_known False: the coordinator restarted or gave the caller up; register again.

    view: `ClusterView.to_dict()` of a newer view, None if there was no news in time.
    """

    is_known: bool
    view: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ClusterStatus:
    """What an operator is shown while the cluster starts and runs. leased: member id by ep_rank."""

    view: Mapping[str, Any]
    leased: Mapping[int, str] = field(default_factory=dict)
    num_members: int = 0


@dataclass(frozen=True)
class Place:
    """Where a member runs, in Kubernetes' names; empty outside of it."""

    pod: str = ""
    node: str = ""


@dataclass(frozen=True)
class ExpertReport:
    """What an expert rank says of itself, again and again. served_epochs: of the maps whose rows it takes.

    checksums: (moe_layer_idx, logical_id, CRC-32) of the experts that the next map gives another copy, once it is
    served. failure: why the next map cannot be served. num_loaded, num_to_load: slots of the next map.
    sample: `ExpertSample.to_dict()` since the last report, None if nothing was computed.
    """

    served_epochs: tuple[int, ...]
    checksums: tuple[tuple[int, int, int], ...] = ()
    failure: str | None = None
    num_loaded: int = 0
    num_to_load: int = 0
    sample: Mapping[str, Any] | None = None
    place: Place = Place()


@dataclass(frozen=True)
class AttentionReport:
    """What an attention actor says of itself. adopted_epoch: of the map that its steps are planned with.

    step_seconds: of the steps since the last report. sample: `LoadSample.to_dict()` since then, None if there was none.
    """

    adopted_epoch: int
    step_seconds: tuple[float, ...] = ()
    sample: Mapping[str, Any] | None = None
    place: Place = Place()


MemberReport = ExpertReport | AttentionReport


@dataclass(frozen=True)
class ProcessReport:
    """What a process of any role has recorded since its birth. role: `ops.telemetry.spec.Owner`'s word. ep_rank: of an
    expert actor. metrics: `ops.telemetry.plain.plain_metrics`."""

    member_id: str
    role: str
    host_id: str
    ep_rank: int | None
    metrics: PlainMetrics


class CoordinatorPort(Protocol):
    """The coordinator as its members see it. Every method raises CoordinatorUnavailable if it cannot be reached."""

    async def lease_rank(
        self, member_id: str, host_id: str, *, held: int | None = None, timeout_s: float = 0.0
    ) -> int | None:
        """Become an expert: the rank `held`, or the lowest free one, waiting for it at most `timeout_s`; else None."""
        ...

    async def publish_shard(self, member_id: str, endpoint: Endpoint) -> bool:
        """The member serves its rank at `endpoint`. False: it holds no lease (any more)."""
        ...

    async def join_attention(self, member_id: str, host_id: str, endpoint: Endpoint | None = None) -> None:
        """Become an attention actor; without an endpoint it is only announced, for the choice of a transport."""
        ...

    async def report_ready(self, member_id: str, is_ready: bool) -> bool:
        """Whether the attention actor can produce a token now. Answers False if it is not in the view."""
        ...

    async def report(self, member_id: str, report: MemberReport) -> bool:
        """Where the member stands with the maps, and what it measured since its last report. False: it is not known
        (any more), and what it measured is lost."""
        ...

    async def leave(self, member_id: str) -> None:
        """Give up everything the member holds. An unknown member is ignored."""
        ...

    async def recover(self, view: Mapping[str, Any]) -> None:
        """Tell a restarted coordinator the newest view the caller has seen."""
        ...

    async def wait_view(self, after_view_id: int, timeout_s: float, member_id: str | None = None) -> ViewReply:
        """Long poll for a view newer than `after_view_id`. Renews `member_id`; None is an observer."""
        ...

    async def gateway_load(self) -> GatewayLoad | None:
        """What all gateways saw, for the autoscaler; None if none has reported lately."""
        ...

    async def report_process(self, report: ProcessReport) -> None:
        """A process's metrics, for whoever looks after the cluster. One that falls silent is forgotten."""
        ...

    async def status(self) -> ClusterStatus: ...
