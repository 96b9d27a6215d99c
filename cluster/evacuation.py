"""Evacuation: which EP ranks are about to go, what map answers that, and where experts were before. Pure.

Plans and remembers; the balancer carries out. While a rank is doomed its experts get copies elsewhere; a rank with a
deadline also gives up what has a copy. When nothing is doomed any more, experts return to where they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.experts_status import Outcome
from cluster.membership import MemberReport, Place
from cluster.surroundings import Doom, Surroundings, doomed_members, host_of_rank
from cluster.view import ClusterView, with_doomed
from routing.experts import ExpertMap
from routing.placement.contract import PlacementProblem
from routing.placement.evacuation import evacuated, uncovered
from routing.placement.holders import BoolArray, held_of, map_of_held
from routing.placement.pinning import pinned

RETRY_S = 20.0  # after an evacuation that was abandoned

DOOMED, RETURNED = "doomed", "returned"  # triggers of a rebalance


@dataclass(frozen=True)
class Fates:
    """doomed: ranks that are about to go. leaving: those of them that have a deadline. Ascending."""

    doomed: tuple[int, ...] = ()
    leaving: tuple[int, ...] = ()


class Evacuation:
    """One for a coordinator's life; after a restart it is told everything again, but not where experts were."""

    def __init__(self) -> None:
        self._surroundings = Surroundings()
        self._places: Mapping[str, Place] = {}
        self._dooms: Mapping[int, Doom] = {}
        self._home: ExpertMap | None = None  # the map before the first evacuation of those that are under way
        self._answered = Fates()  # what the present map is made for
        self._attempted: Fates | None = None
        self._is_cut = False
        self._not_before = -math.inf

    def note(self, surroundings: Surroundings) -> None:
        """What is known of places now."""
        self._surroundings = surroundings

    def look(self, view: ClusterView, reports: Mapping[str, MemberReport]) -> ClusterView:
        """The view in which members that are about to go are marked."""
        self._places = {member_id: report.place for member_id, report in reports.items()}
        dooms = doomed_members(view, self._places, self._surroundings)
        ranks = {ep_rank: dooms.get(shard.member_id) for ep_rank, shard in view.shards.items()}
        self._dooms = {ep_rank: doom for ep_rank, doom in ranks.items() if doom is not None}
        return with_doomed(view, {member_id: doom.reason for member_id, doom in dooms.items()})

    def host_of_rank(self, view: ClusterView) -> tuple[int, ...] | None:
        """See `surroundings.host_of_rank`."""
        return host_of_rank(view, self._places, self._surroundings)

    def is_due(self, view: ClusterView, now: float) -> bool:
        """Whether the present map does not answer what is about to happen. A rank that nobody serves is waited for."""
        is_answered = self._fates in (self._answered, self._attempted)
        return not is_answered and not view.missing_ranks and now >= self._not_before

    @property
    def trigger(self) -> str:
        """Of the rebalance that is due."""
        return DOOMED if self._dooms else RETURNED

    def avoided(self, candidate: ExpertMap, problem: PlacementProblem) -> ExpertMap:
        """A policy's candidate, put right for the ranks that are about to go."""
        if not self._dooms:
            return candidate
        return map_of_held(self._put_right(held_of(candidate), problem), problem.expert_map)

    def target(self, problem: PlacementProblem) -> ExpertMap:
        """The map that is due. Raises ValueError for pins that nothing can satisfy."""
        home = pinned(held_of(self._home or problem.expert_map), problem)
        return map_of_held(self._put_right(home, problem), problem.expert_map)

    def sentence(self, target: ExpertMap, num_moves: int) -> str:
        """What the target does, and what it cannot do."""
        if not self._dooms:
            return f"nothing is about to go any more: {num_moves} moves bring experts back to where they were"
        ranks = "; ".join(f"EP rank {ep_rank}: {doom.reason}" for ep_rank, doom in self._dooms.items())
        num_left = int(uncovered(held_of(target), self._dooms).sum())
        left = f"; {num_left} experts over all layers find no slot elsewhere" if num_left else ""
        return f"{num_moves} moves give experts a copy where they are safe{left} ({ranks})"

    def begin(self, expert_map: ExpertMap) -> None:
        """The due rebalance begins. expert_map: the present one."""
        self._home = self._home or expert_map
        self._attempted = self._fates

    def cut(self) -> None:
        """The rebalance that is under way ends early."""
        self._is_cut = True

    def ended(self, outcome: Outcome, now: float) -> None:
        """A rebalance, of whatever trigger, is over."""
        attempted, is_cut = self._attempted, self._is_cut
        self._attempted, self._is_cut = None, False
        if outcome is Outcome.ABANDONED:
            self._not_before = now + RETRY_S
        elif attempted is None:
            self._home = None  # experts have been placed anew, for their load
        elif not is_cut:
            self.answer(attempted)

    def answer(self, fates: Fates | None = None) -> None:
        """The present map answers these fates, by default the present ones."""
        self._answered = self._fates if fates is None else fates
        if self._answered == Fates():
            self._home = None

    @property
    def _fates(self) -> Fates:
        leaving = (ep_rank for ep_rank, doom in self._dooms.items() if doom.deadline is not None)
        return Fates(tuple(sorted(self._dooms)), tuple(sorted(leaving)))

    def _put_right(self, held: BoolArray, problem: PlacementProblem) -> BoolArray:
        fates = self._fates
        return evacuated(held, problem, fates.doomed, fates.leaving)
