"""Gives experts of ranks that are about to go a copy elsewhere, hottest first, as far as slots reach. Pure.

A rank with a free slot takes an expert; without any, a redundant copy gives way, the coldest first: an expert with no
copy elsewhere is worth more than a second copy of one that is safe. An operator's pins are left as they are.

Legend: L MoE layers, R EP ranks, E logical experts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from routing.placement.contract import FloatArray, PlacementProblem
from routing.placement.holders import BoolArray


def evacuated(
    held: BoolArray, problem: PlacementProblem, doomed: Collection[int], leaving: Collection[int] = ()
) -> BoolArray:
    """Holders in which as many experts as possible are on a rank that stays. held: bool [L, R, E].

    doomed: ranks that may go: nothing is put there, and what they hold still serves. leaving: those of them that go
    soon: what has a copy on a rank that stays is taken off, so that no more rows go there than must.
    """
    result = held.copy()
    staying = [rank for rank in range(held.shape[1]) if rank not in doomed]
    for layer in range(len(result)):
        pinned = np.zeros(held.shape[2], dtype=np.bool_)
        pinned[list(problem.pins_of(layer))] = True
        _cover(_Layer(result[layer], problem.load[layer], pinned, problem.expert_map.slots_per_rank), staying)
        if staying:
            result[layer, list(leaving)] &= pinned | ~result[layer, staying].any(axis=0)
    return result


def uncovered(held: BoolArray, doomed: Collection[int]) -> BoolArray:
    """bool [L, E]: experts that no rank holds but those that are about to go."""
    staying = [rank for rank in range(held.shape[1]) if rank not in doomed]
    is_alone: BoolArray = np.logical_not(held[:, staying].any(axis=1))
    return is_alone


class _Layer:
    """One layer while it changes. held: bool [R, E], changed in place. load: [E]. pinned: bool [E]."""

    def __init__(self, held: BoolArray, load: FloatArray, pinned: BoolArray, slots_per_rank: int) -> None:
        self.held, self.load, self.pinned, self.slots_per_rank = held, load, pinned, slots_per_rank

    def calmest(self, ranks: Sequence[int]) -> int | None:
        """The rank with least load of those that have a free slot."""
        sizes = self.held.sum(axis=1)
        able = [rank for rank in ranks if sizes[rank] < self.slots_per_rank]
        return min(able, key=lambda rank: (self.rank_load(rank), rank), default=None)

    def drop_coldest(self, ranks: Sequence[int]) -> int | None:
        """Take a redundant copy off the busier of its ranks; which rank that was, or None if there is no such copy."""
        is_redundant = (self.held[ranks].sum(axis=0) > 1) & ~self.pinned
        if not is_redundant.any():
            return None
        expert = int(np.where(is_redundant, self.load, np.inf).argmin())
        rank = max((rank for rank in ranks if self.held[rank, expert]), key=lambda rank: (self.rank_load(rank), rank))
        self.held[rank, expert] = False
        return rank

    def rank_load(self, rank: int) -> float:
        """Copies of an expert share its load evenly."""
        return float((self.load / np.maximum(self.held.sum(axis=0), 1))[self.held[rank]].sum())


def _cover(layer: _Layer, staying: Sequence[int]) -> None:
    is_waiting = ~layer.held[staying].any(axis=0) & ~layer.pinned
    hottest_first = np.argsort(-layer.load, kind="stable")
    for expert in hottest_first[is_waiting[hottest_first]].tolist():
        rank = layer.calmest(staying)
        if rank is None:
            rank = layer.drop_coldest(staying)
        if rank is None:
            return
        layer.held[rank, expert] = True
