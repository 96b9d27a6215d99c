"""OperatorPicture: what the coordinator shows to whoever looks after the cluster: the expert tier, processes and their
numbers, and what happened lately. Time is an argument, and nothing here decides anything.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.experts_status import ExpertTierStatus
from cluster.membership import ProcessReport
from cluster.metrics.coordinator import CoordinatorCounts, CoordinatorMetrics
from cluster.notices import Notice
from cluster.view import ClusterView
from ops.telemetry.matrix import ExpertMatrix
from ops.telemetry.meter import Meter
from routing.load.sample import LoadKind, LoadSample
from routing.load.sums import FloatArray

MAX_EVENTS = 200
SILENT_S = 15.0  # a process that says nothing for so long is no longer shown
DIGITS = 3  # significant ones of a load
MATRICES: Mapping[str, LoadKind] = {
    "step35_expert_load_tokens": "tokens",
    "step35_expert_gate_mass": "gate_mass",
    "step35_expert_soft_load_tokens": "soft",
}


@dataclass(frozen=True)
class TierNow:
    """The expert tier at one moment. load: float64 [L, E], expected pairs of each logical expert in a step. sample:
    what the load window holds. decisions: maps considered since birth, by what came of it."""

    view: ClusterView
    status: ExpertTierStatus
    load: FloatArray
    sample: LoadSample
    decisions: Mapping[str, int]


class OperatorPicture:
    """One for a coordinator's life. Processes report again after its restart; what happened before is in the logs."""

    def __init__(
        self,
        model_name: str,
        meter: Meter,
        *,
        matrix: ExpertMatrix | None = None,
        own_report: Callable[[], ProcessReport] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """matrix: is given the load of every layer and expert. own_report: of this process. wall_clock: seconds since
        the epoch."""
        self._model_name = model_name
        self._metrics = CoordinatorMetrics(meter)
        self._matrix = matrix
        self._own_report = own_report
        self._wall_clock = wall_clock
        self._processes: dict[str, tuple[float, ProcessReport]] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)

    def note_process(self, report: ProcessReport, now: float) -> None:
        """The latest numbers of one process. now: monotonic."""
        self._processes[report.member_id] = now, report

    def note(self, notice: Notice) -> None:
        """Something happened."""
        self._events.append(
            {"time": self._wall_clock(), "kind": notice.kind, "text": notice.text, "member": notice.member}
        )

    def record(self, tier: TierNow, counts: CoordinatorCounts) -> None:
        """Bring the metrics of this process up to date."""
        self._metrics.record(tier.view, tier.status, tier.decisions, counts)
        if self._matrix is not None and tier.sample.num_tokens > 0.0:
            self._matrix.set({name: tier.sample.load(kind) for name, kind in MATRICES.items()})

    def state(self, tier: TierNow, now: float) -> dict[str, Any]:
        """Everything at one moment, as plain values. now: monotonic."""
        view, status = tier.view, tier.status
        return {
            "time": self._wall_clock(),
            "model": {
                "name": self._model_name,
                "layer_ids": [layer.layer_id for layer in status.layers],
                "num_logical_experts": view.expert_map.num_logical_experts,
                "ep_size": view.expert_map.ep_size,
            },
            "experts": status.to_dict(),
            "load": rounded(tier.load),
            "members": self._members(view, now),
            "events": list(self._events),
        }

    def _members(self, view: ClusterView, now: float) -> list[dict[str, Any]]:
        """Every process heard lately, by role and name."""
        if self._own_report is not None:
            self.note_process(self._own_report(), now)
        self._processes = {name: entry for name, entry in self._processes.items() if now - entry[0] <= SILENT_S}
        reports = sorted(self._processes.values(), key=lambda entry: (entry[1].role, entry[1].member_id))
        ready = _ready(view)
        return [
            {
                "member": report.member_id,
                "role": report.role,
                "ep_rank": report.ep_rank,
                "host": report.host_id,
                "is_ready": ready.get(report.member_id, report.role in ("gateway", "coordinator")),
                "age_s": round(now - heard_at, 2),
                "metrics": report.metrics,
            }
            for heard_at, report in reports
        ]


def rounded(load: FloatArray) -> list[list[float]]:
    """A few significant digits: what a heatmap shows, in a third of the bytes."""
    exponents = DIGITS - 1 - np.floor(np.log10(np.maximum(np.abs(load), 1e-9)))
    scale = 10.0**exponents
    values: list[list[float]] = (np.round(load * scale) / scale).tolist()
    return values


def map_document(view: ClusterView) -> dict[str, Any]:
    """Which expert is in which slot."""
    expert_map = view.expert_map
    return {
        "map_epoch": expert_map.map_epoch,
        "slots_per_rank": expert_map.slots_per_rank,
        "physical_to_logical": expert_map.physical_to_logical.tolist(),
    }


def _ready(view: ClusterView) -> Mapping[str, bool]:
    """Of the members in the view: an expert rank that is published serves."""
    attention = {member_id: member.is_ready for member_id, member in view.attention.items()}
    return attention | {shard.member_id: True for shard in view.shards.values()}
