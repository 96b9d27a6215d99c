"""The whole cluster at one moment, as the admin route's state tells it: members with their metrics, experts, events.

Frozen plain values. Reads what a terminal needs; other fields are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.experts_status import ExpertTierStatus
from ops.telemetry.cells import HistogramValue

# Label values in declared order -> a number since the process began, or a histogram's.
Points = Mapping[tuple[str, ...], float | HistogramValue]


@dataclass(frozen=True)
class MemberState:
    """One process. role: gateway, attention, expert or coordinator. age_s: since its last report, which the metrics
    are of. One that restarts has another name."""

    member: str
    role: str
    ep_rank: int | None
    is_ready: bool
    age_s: float
    metrics: Mapping[str, Points]


@dataclass(frozen=True)
class ClusterEvent:
    """Something that happened. time: seconds since the epoch."""

    time: float
    kind: str
    text: str


@dataclass(frozen=True)
class ClusterState:
    """time: the coordinator's clock, in seconds since the epoch. events: newest last."""

    time: float
    model_name: str
    ep_size: int
    experts: ExpertTierStatus
    members: tuple[MemberState, ...]
    events: tuple[ClusterEvent, ...]

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ClusterState:
        """From JSON. Raises KeyError, TypeError, ValueError or AttributeError on anything else."""
        return cls(
            time=float(fields["time"]),
            model_name=str(fields["model"]["name"]),
            ep_size=int(fields["model"]["ep_size"]),
            experts=ExpertTierStatus.from_dict(fields["experts"]),
            members=tuple(_member(member) for member in fields["members"]),
            events=tuple(_event(event) for event in fields["events"]),
        )

    def of_role(self, role: str) -> tuple[MemberState, ...]:
        return tuple(member for member in self.members if member.role == role)


def _member(fields: Mapping[str, Any]) -> MemberState:
    return MemberState(
        member=str(fields["member"]),
        role=str(fields["role"]),
        ep_rank=None if fields["ep_rank"] is None else int(fields["ep_rank"]),
        is_ready=bool(fields["is_ready"]),
        age_s=float(fields["age_s"]),
        metrics={
            name: {tuple(map(str, labels)): _value(value) for labels, value in points}
            for name, points in fields["metrics"].items()
        },
    )


def _value(value: Any) -> float | HistogramValue:
    if isinstance(value, Mapping):
        return HistogramValue(tuple(map(int, value["counts"])), float(value["total"]))
    return float(value)


def _event(fields: Mapping[str, Any]) -> ClusterEvent:
    return ClusterEvent(float(fields["time"]), str(fields["kind"]), str(fields["text"]))
