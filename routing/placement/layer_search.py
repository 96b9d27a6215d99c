"""The search in one MoE layer: which single change of who holds what helps the slowest rank most, again and again.

A change moves an expert, swaps two, copies one, or drops a copy; where it needs room it drops a redundant copy. It
counts if it takes from the slowest rank and leaves every rank that it touches below what that one had, so the search
cannot run in circles. Pure.

Legend: E logical experts, R EP ranks.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from routing.placement.holders import Holders

NUM_TARGETS = 3  # ranks, the least busy first, that may take something from the slowest
TOLERANCE = 5e-4  # of a rank's mean time: less is not worth a change
SPARE_SLACK = 2e-3  # of a rank's mean time: what a copy for availability may cost in balance
FREE_CHANGE = 0.5  # moves that dropping a copy counts as, when changes are compared


@dataclass(frozen=True)
class LayerProblem:
    """One layer. load: pairs of each expert in a step. max_copies: redundant ones in the layer. pinned: experts whose
    copies stay. host_of_rank: by EP rank."""

    load: Sequence[float]
    per_expert_s: float
    per_pair_s: float
    slots_per_rank: int
    max_copies: int
    pinned: frozenset[int]
    host_of_rank: Sequence[int]


@dataclass(frozen=True)
class Change:
    """adds, removes: (expert, rank). gain: seconds that the slowest rank is relieved by, the others considered."""

    gain: float
    adds: tuple[tuple[int, int], ...]
    removes: tuple[tuple[int, int], ...] = ()

    @property
    def num_moves(self) -> int:
        return len(self.adds)

    @property
    def worth(self) -> float:
        """Gain for each expert that has to be loaded."""
        return self.gain / max(float(self.num_moves), FREE_CHANGE)


@dataclass
class LayerSearch:
    """Owns the holders of one layer and changes them. All costs are expected seconds of a step."""

    problem: LayerProblem
    holders: Holders
    ranks_of: list[list[int]] = field(init=False)  # ascending, by expert
    weight: list[float] = field(init=False)  # of each copy of an expert
    cost: list[float] = field(init=False)  # of each rank
    _by_weight: list[list[tuple[float, int]]] = field(init=False)  # a rank's experts, the lightest first

    def __post_init__(self) -> None:
        self.holders = [set(held) for held in self.holders]
        self.ranks_of = [[] for _ in self.problem.load]
        for rank, held in enumerate(self.holders):
            for expert in held:
                self.ranks_of[expert].append(rank)
        self.weight = [self._weight(expert, len(ranks)) for expert, ranks in enumerate(self.ranks_of)]
        self._by_weight = [sorted((self.weight[e], e) for e in held) for held in self.holders]
        self.cost = [math.fsum(weight for weight, _ in ranked) for ranked in self._by_weight]

    @property
    def num_copies(self) -> int:
        """Redundant copies in the layer."""
        return sum(map(len, self.holders)) - len(self.ranks_of)

    def best_change(self) -> Change | None:
        """The change that is worth most, the first of equals; None if none is worth its trouble."""
        least = TOLERANCE * math.fsum(self.cost) / len(self.cost)
        best: Change | None = None
        for change in self._changes():
            if change.gain > least and (best is None or change.worth > best.worth):
                best = change
        return best

    def apply(self, change: Change) -> None:
        """Make it so."""
        touched = sorted({expert for expert, _ in (*change.adds, *change.removes)})
        for expert in touched:
            self._lift(expert)
        for expert, rank in change.removes:
            self.ranks_of[expert].remove(rank)
            self.holders[rank].remove(expert)
        for expert, rank in change.adds:
            insort(self.ranks_of[expert], rank)
            self.holders[rank].add(expert)
        for expert in touched:
            self._lower(expert)

    def spare_change(self) -> Change | None:
        """A copy on another host for the hottest expert without one, where a slot is free and nobody gets noticeably
        slower than the slowest is: a dispatch uses the copy on the less busy rank anyway."""
        if self.num_copies >= self.problem.max_copies:
            return None
        slowest = max(*self.cost, (1.0 + SPARE_SLACK) * math.fsum(self.cost) / len(self.cost))
        for expert in sorted(range(len(self.ranks_of)), key=lambda e: (-self.problem.load[e], e)):
            hosts = {self.problem.host_of_rank[rank] for rank in self.ranks_of[expert]}
            if len(hosts) > 1 or expert in self.problem.pinned:
                continue
            for rank in sorted(range(len(self.cost)), key=lambda r: (self.cost[r], r)):
                if self._has_room(rank) and self.problem.host_of_rank[rank] not in hosts:
                    adds = ((expert, rank),)
                    if self._outcome(adds, ()) <= slowest:
                        return Change(0.0, adds)
                    break
        return None

    def _changes(self) -> Iterator[Change]:
        worst = min(range(len(self.cost)), key=lambda r: (-self.cost[r], r))
        others = sorted((r for r in range(len(self.cost)) if r != worst), key=lambda r: (self.cost[r], r))
        can_copy = self.num_copies < self.problem.max_copies
        for expert in sorted(self.holders[worst]):
            if expert in self.problem.pinned or self.weight[expert] == 0.0:
                continue
            here = (expert, worst)
            if len(self.ranks_of[expert]) > 1:
                yield self._change(worst, (), (here,))
            for rank in others[:NUM_TARGETS]:
                if expert not in self.holders[rank]:
                    yield from self._changes_to(rank, here, can_copy=can_copy)

    def _changes_to(self, rank: int, here: tuple[int, int], *, can_copy: bool) -> Iterator[Change]:
        """What can be done with an expert of the slowest rank and another rank that does not hold it."""
        expert, worst = here
        there = (expert, rank)
        evicted = () if self._has_room(rank) else self._evicted(rank)
        if evicted is not None:
            yield self._change(worst, (there,), (here, *evicted))
            if can_copy or evicted:
                yield self._change(worst, (there,), evicted)
        for partner in self._partners(expert, worst, rank):
            yield self._change(worst, (there, (partner, worst)), (here, (partner, rank)))

    def _evicted(self, rank: int) -> tuple[tuple[int, int]] | None:
        """The lightest redundant copy of a full rank; None if it has none."""
        for _, expert in self._by_weight[rank]:
            if len(self.ranks_of[expert]) > 1 and expert not in self.problem.pinned:
                return ((expert, rank),)
        return None

    def _partners(self, expert: int, worst: int, rank: int) -> Iterator[int]:
        """Experts of another rank whose exchange brings both ranks closest together: next to the ideal weight."""
        ideal = self.weight[expert] - (self.cost[worst] - self.cost[rank]) / 2
        ranked = self._by_weight[rank]
        at = bisect_left(ranked, (ideal, -1))
        for idx in (at - 1, at):
            if 0 <= idx < len(ranked):
                partner = ranked[idx][1]
                if partner not in self.holders[worst] and partner not in self.problem.pinned:
                    yield partner

    def _change(self, worst: int, adds: tuple[tuple[int, int], ...], removes: tuple[tuple[int, int], ...]) -> Change:
        return Change(self.cost[worst] - self._outcome(adds, removes), adds, removes)

    def _outcome(self, adds: Sequence[tuple[int, int]], removes: Sequence[tuple[int, int]]) -> float:
        """The highest cost among the ranks whose cost changes."""
        after: dict[int, float] = {}
        for expert in sorted({expert for expert, _ in (*adds, *removes)}):
            gone = [rank for each, rank in removes if each == expert]
            come = [rank for each, rank in adds if each == expert]
            weight = self._weight(expert, len(self.ranks_of[expert]) + len(come) - len(gone))
            for rank in self.ranks_of[expert]:
                kept = 0.0 if rank in gone else weight
                after[rank] = after.get(rank, self.cost[rank]) - self.weight[expert] + kept
            for rank in come:
                after[rank] = after.get(rank, self.cost[rank]) + weight
        return max(after.values())

    def _lift(self, expert: int) -> None:
        """Take an expert out of its ranks' costs, before its copies change."""
        for rank in self.ranks_of[expert]:
            self.cost[rank] -= self.weight[expert]
            ranked = self._by_weight[rank]
            del ranked[bisect_left(ranked, (self.weight[expert], expert))]

    def _lower(self, expert: int) -> None:
        """Put it back with what its copies cost now."""
        self.weight[expert] = self._weight(expert, len(self.ranks_of[expert]))
        for rank in self.ranks_of[expert]:
            self.cost[rank] += self.weight[expert]
            insort(self._by_weight[rank], (self.weight[expert], expert))

    def _has_room(self, rank: int) -> bool:
        return len(self.holders[rank]) < self.problem.slots_per_rank

    def _weight(self, expert: int, num_copies: int) -> float:
        """Expected seconds of each of so many copies, as `score.copy_seconds`."""
        pairs = self.problem.load[expert] / num_copies
        return self.problem.per_expert_s * -math.expm1(-pairs) + self.problem.per_pair_s * pairs
