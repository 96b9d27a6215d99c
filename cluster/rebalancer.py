"""Rebalancer: takes one change of the expert map through prepare, adopt and retire, stage by stage. Never plans one.

Pure: views and reports go in, the next view comes out, time is an argument. What it knows beyond the view is how it got
there; a rebalancer that starts in the middle goes on with what the view says. A stage that cannot be prepared is
abandoned, and serving goes on with the map that every stage leaves complete.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from cluster.experts_status import Outcome, Phase, RebalanceRecord
from cluster.membership import AttentionReport, ExpertReport, MemberReport
from cluster.view import (
    ClusterView,
    with_next_map,
    with_next_map_adopted,
    without_next_map,
    without_previous_map,
)
from routing.experts import EMPTY_SLOT, ExpertMap

logger = logging.getLogger(__name__)

MAX_HISTORY = 20
RESUMED = "resumed"

Reports = Mapping[str, MemberReport]


@dataclass(frozen=True)
class Rebalance:
    """A planned change. stages: maps to adopt one after the other; their epochs are given when their turn comes.

    trigger, gain, balancedness_*: as in RebalanceRecord. pairs_per_touch: that the maps were planned with; None if that
    is not known.
    """

    stages: tuple[ExpertMap, ...]
    trigger: str
    num_moves: int
    gain: float | None = None
    balancedness_before: float | None = None
    balancedness_planned: float | None = None
    pairs_per_touch: int | None = None


@dataclass
class _Run:
    """The rebalance that is under way. stage: counted from 1. began, since: of the whole and of the phase, monotonic;
    started_at: seconds since the epoch."""

    rebalance: Rebalance
    stage: int
    began: float
    since: float
    started_at: float


class Rebalancer:
    """Owns the rebalance that is under way and the record of those that are over."""

    def __init__(self, timeout_s: float, wall_clock: Callable[[], float]) -> None:
        """timeout_s: a stage that takes longer to prepare is abandoned; one that takes longer to adopt is stalled.
        wall_clock: seconds since the epoch, for the record."""
        self._timeout_s = timeout_s
        self._wall_clock = wall_clock
        self._run: _Run | None = None
        self._last_epoch = -1
        self._history: deque[RebalanceRecord] = deque(maxlen=MAX_HISTORY)

    @property
    def history(self) -> tuple[RebalanceRecord, ...]:
        """The latest last."""
        return tuple(self._history)

    @property
    def is_busy(self) -> bool:
        return self._run is not None

    def stage(self) -> tuple[int, int]:
        """The stage that is under way and how many there are; (0, 0) when idle."""
        return (self._run.stage, len(self._run.rebalance.stages)) if self._run else (0, 0)

    def phase_seconds(self, now: float) -> float:
        """How long the present phase has lasted; 0 when idle."""
        return now - self._run.since if self._run else 0.0

    def is_stalled(self, now: float) -> bool:
        """Whether the present phase takes longer than it may: something outside does not do its part."""
        return self.phase_seconds(now) > self._timeout_s

    def begin(self, rebalance: Rebalance, now: float) -> None:
        """Start a change; `advance` does the rest. Call only while not busy."""
        assert self._run is None, "one rebalance at a time"
        self._run = _Run(rebalance, 0, began=now, since=now, started_at=self._wall_clock())

    def end_early(self) -> None:
        """The stage under way is the last one, because something more urgent waits: every stage leaves a whole map."""
        if self._run is not None:
            rebalance = self._run.rebalance
            self._run.rebalance = replace(rebalance, stages=rebalance.stages[: self._run.stage])

    def advance(self, view: ClusterView, reports: Reports, now: float) -> ClusterView:
        """The view after as much as can be done now. reports: the latest of each living member."""
        if self._run is None and phase_of(view) is not Phase.IDLE:
            self._run = _Run(_resumed(view), 1, began=now, since=now, started_at=self._wall_clock())
        before = None
        while view is not before:
            before, view = view, self._advance_once(view, reports, now)
        return view

    def note_measured(self, balancedness: float) -> None:
        """What the last rebalance has brought, once the load window holds nothing older."""
        if self._history and self._history[-1].balancedness_after is None:
            self._history[-1] = replace(self._history[-1], balancedness_after=balancedness)

    def _advance_once(self, view: ClusterView, reports: Reports, now: float) -> ClusterView:
        if view.next_map is not None:
            return self._prepare(view, view.next_map, reports, now)
        if view.previous_map is not None:
            return self._retire(view, reports, now)
        return self._next_stage(view, now)

    def _prepare(self, view: ClusterView, next_map: ExpertMap, reports: Reports, now: float) -> ClusterView:
        obstacle = next(_obstacles(view, reports), None)
        if obstacle is None and self.is_stalled(now):
            obstacle = f"not prepared within {self._timeout_s:.0f} s"
        if obstacle is not None:
            return self._abandon(view, obstacle, now)
        if not all(next_map.map_epoch in each.served_epochs for each in _expert_reports(view, reports)):
            return view
        self._turn(now)
        return with_next_map_adopted(view)

    def _retire(self, view: ClusterView, reports: Reports, now: float) -> ClusterView:
        """Silent attention actors are waited for: whoever is dead leaves the view."""
        epoch = view.expert_map.map_epoch
        for member_id in view.attention:
            report = reports.get(member_id)
            if not isinstance(report, AttentionReport) or report.adopted_epoch < epoch:
                return view
        self._turn(now)
        return without_previous_map(view)

    def _next_stage(self, view: ClusterView, now: float) -> ClusterView:
        run = self._run
        if run is None:
            return view
        if run.stage == len(run.rebalance.stages):
            self._finish(Outcome.DONE, "", now)
            return view
        run.stage += 1
        self._turn(now)
        self._last_epoch = max(self._last_epoch, view.highest_epoch) + 1
        next_map = replace(run.rebalance.stages[run.stage - 1], map_epoch=self._last_epoch)
        return with_next_map(view, next_map, run.rebalance.pairs_per_touch)

    def _abandon(self, view: ClusterView, reason: str, now: float) -> ClusterView:
        logger.warning("the rebalance is abandoned: %s", reason)
        self._finish(Outcome.ABANDONED, reason, now)
        return without_next_map(view)

    def _finish(self, outcome: Outcome, reason: str, now: float) -> None:
        run, self._run = self._run, None
        assert run is not None, "nothing is under way"
        planned = run.rebalance
        self._history.append(
            RebalanceRecord(
                started_at=run.started_at,
                trigger=planned.trigger,
                num_moves=planned.num_moves,
                num_stages=len(planned.stages),
                seconds=now - run.began,
                gain=planned.gain,
                balancedness_before=planned.balancedness_before,
                balancedness_planned=planned.balancedness_planned,
                balancedness_after=None,
                outcome=outcome,
                reason=reason,
            )
        )

    def _turn(self, now: float) -> None:
        if self._run is not None:
            self._run.since = now


def phase_of(view: ClusterView) -> Phase:
    """Where the view stands in a rebalance."""
    if view.next_map is not None:
        return Phase.PREPARING
    return Phase.IDLE if view.previous_map is None else Phase.ADOPTING


def _obstacles(view: ClusterView, reports: Reports) -> Iterator[str]:
    """What keeps the next map from ever being prepared as things are."""
    for ep_rank in view.missing_ranks:
        yield f"EP rank {ep_rank} is gone"
    yield from (report.failure for report in _expert_reports(view, reports) if report.failure is not None)
    sums: dict[tuple[int, int], int] = {}
    for report in _expert_reports(view, reports):
        for moe_layer_idx, logical_id, crc in report.checksums:
            if sums.setdefault((moe_layer_idx, logical_id), crc) != crc:
                yield f"two ranks hold different weights of expert {logical_id} in MoE layer {moe_layer_idx}"


def _expert_reports(view: ClusterView, reports: Reports) -> list[ExpertReport]:
    """One for each rank that is there; an empty one for a rank that has said nothing yet."""
    found = (reports.get(shard.member_id) for shard in view.shards.values())
    return [report if isinstance(report, ExpertReport) else ExpertReport(()) for report in found]


def _resumed(view: ClusterView) -> Rebalance:
    """What is left of a rebalance whose beginning nobody remembers."""
    old, new = (view.expert_map, view.next_map) if view.next_map else (view.previous_map, view.expert_map)
    assert old is not None, "there is no rebalance to resume"
    assert new is not None, "there is no rebalance to resume"
    is_move = (old.physical_to_logical != new.physical_to_logical) & (new.physical_to_logical != EMPTY_SLOT)
    return Rebalance((new,), RESUMED, int(is_move.sum()))
